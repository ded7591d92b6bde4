"""The source that a run is made with. No address of a repository, no user name."""

from typing import Annotated, Literal

from invarlock.documents.fields import Closed, Sha256, Text, about, matches

TITLE = "state/source_repo.json"


class SourceRepo(Closed):
    """The source that a run is made with. No address of a repository, no user name."""

    schema: Annotated[Literal["invarlock/source-repo-v1"], about("layout of this file")]
    version: Annotated[Text, about("version of the package")]
    code: Annotated[Sha256, about("digest over all files of the package and its contracts")]
    commit: Annotated[
        Annotated[str, matches(r"^[0-9a-f]{40,64}$")] | None,
        about("commit of the checkout; null: not a git checkout"),
    ]
    branch: Annotated[str | None, about("branch; null: none")]
    describe: Annotated[
        str | None, about("nearest tag and distance, or the short commit; null: not a git checkout")
    ]
    dirty: Annotated[
        bool | None, about("a tracked file differs from the commit; null: not a git checkout")
    ]


DOCUMENT = SourceRepo
