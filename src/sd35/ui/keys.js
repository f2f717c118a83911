document.addEventListener("keydown", (event) => {
  const isPrompt = event.target.closest?.("#prompt, #negative-prompt");
  if (isPrompt && event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    document.querySelector("#generate:not([disabled])")?.click();
  }
});
