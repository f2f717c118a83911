"""Write all generated pages, and the tables of figures."""

from benchmarks.readme import write_tables
from docs_generator.pages import PAGES, ROOT


def main() -> None:
    """Write each page, print which of them changed, and write the tables of the last benchmarks."""
    for name, render in PAGES.items():
        path, text = ROOT / name, render()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"{name} is written")
    write_tables()


if __name__ == "__main__":
    main()
