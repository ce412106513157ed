"""A hook of MkDocs: the site has each file at its path in the repository, so links work in both."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
TOP = ("*.md", "CITATION.cff", "Containerfile")
FOLDERS = ("docs", "experiments", "notebooks", "src/journey/data")
SUFFIXES = {".css", ".md", ".png", ".py", ".json", ".csv", ".yaml", ".ipynb"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/, which would be the top of the site, by those of the repository.

    Args:
        files: Those of docs/ and of the theme.
        config: Settings of mkdocs.yml.

    Returns:
        The documents, what they show or link to, and the theme's files.
    """
    paths = [path for name in TOP for path in ROOT.glob(name)]
    for folder in FOLDERS:
        paths += [path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    site = [file for file in files if file.src_dir != config.docs_dir]
    for path in sorted(paths):
        name = path.relative_to(ROOT).as_posix()
        site.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return Files(site)
