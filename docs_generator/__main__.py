"""Write all generated pages, and the tables of benchmark results in the README files."""

from benchmarks.readme import write_tables
from docs_generator.pages import PAGES, ROOT


def main() -> None:
    """Write each page that has changed and print its name, then write the tables of the last benchmarks."""
    for name, render in PAGES.items():
        path, text = ROOT / name, render()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}")
    write_tables()


if __name__ == "__main__":
    main()
