"""POPE's published question files: names, commits and hashes."""

from __future__ import annotations

from regaze.eval.benchmarks.common.download import RemoteFile, github_file

REPOSITORY = "AoiDragon/POPE"
SPLITS = ("random", "popular", "adversarial")
VERSIONS = ("head", "9b54106", "e3e3926", "7ef3026")
#: Data set -> pattern of its file names.
FILES = {
    "coco": "coco_pope_{split}.json",
    "aokvqa": "aokvqa_pope_seem_{split}.json",
    "gqa": "gqa_pope_seem_{split}.json",
}

HEAD = "08d957b917e5a378a2f99d35b6293c536a66298b"
COMMITS = {
    "head": HEAD,
    "9b54106": "9b54106",
    "e3e3926": "e3e39262c85a6a83f26cf5094022a782cb0df58d",
    "7ef3026": "7ef3026faa9a89ed11fd508385fad652fdc6349f",
}
#: (version, split) -> SHA-256 of the COCO file; unknown for 9b54106.
COCO_SHA256 = {
    ("head", "random"): "ac25245170b975a5bdf9080b23fd431dfe6be458bc038259c1f4f09a6bef7994",
    ("head", "popular"): "72c1a8ad45d0c13514f5f22598261df41d3b533854d29682e924db50ed8aa753",
    ("head", "adversarial"): "420b3407db1fa9f1187a805dca41cb7b97fd91504e6c2179706188c107fb8ef8",
    ("e3e3926", "random"): "c16b65d2df6d70bb0814c8a4375833d39cdb09928fd936d3fc546491efa37f35",
    ("e3e3926", "popular"): "5b16653023bf4f64d57eb0d168259de6627f5cde7538b85ebed3cc33034aa6cc",
    ("e3e3926", "adversarial"): "1d8f0906a9b50c05640f6f23abfac97523be2a1bed28f7eadc63b811699b2d26",
    ("7ef3026", "random"): "cb8dec967727fbee4b9cfadf9ba1ea9968515b12063efd313d0cf8b2b4230c86",
    ("7ef3026", "popular"): "eafca6ceff32c7bbb5b2845a00c6828ec8cbaf5e04f890d6902dc46b92f96076",
    ("7ef3026", "adversarial"): "412efc6fe25eb2604f2386d536bcf713dc88327cb20c36489b1f689f89617d04",
}
#: (data set, split) -> SHA-256 of the file of another data set.
SEEM_SHA256 = {
    ("aokvqa", "random"): "f06eecde6d6ef4a00b95a7bbb510490708a09a6a67d952b59b8bdd33ac2c7200",
    ("aokvqa", "popular"): "2ae5bedee3450cda52f9b033942c7b04a3917a86a110e859a66c1e41934c6ffd",
    ("aokvqa", "adversarial"): "2ddd3bdfa0df7a77a2cb1765ed06ac5ed190b5a093aa405b96986e862e8cdac1",
    ("gqa", "random"): "6ce488eade3770185034939fabfe742fa32ed369011c8d9c3ac77bc0c85abd94",
    ("gqa", "popular"): "dd03f06a458dd216e83233160fbf6628af9c63c84b11e99599f4fc0304b3361d",
    ("gqa", "adversarial"): "74e01b41d8308e2392e3b8d961167496ff3901c01100265d931a7a392f138a7a",
}


def question_files() -> tuple[RemoteFile, ...]:
    """Every published question file, those of COCO in a folder per version."""
    files = []
    for version, commit in COMMITS.items():
        for split in SPLITS:
            name = FILES["coco"].format(split=split)
            digest = COCO_SHA256.get((version, split))
            path = f"output/coco/{name}"
            files.append(github_file(REPOSITORY, commit, path, digest, f"{version}/{name}"))
    for (dataset, split), digest in SEEM_SHA256.items():
        name = FILES[dataset].format(split=split)
        files.append(github_file(REPOSITORY, HEAD, f"output/seem/{dataset}/{name}", digest))
    return tuple(files)


def coco_version(sha256: str) -> str:
    """The version of a COCO file with this hash, "unknown" if it is none of the pinned ones."""
    versions = {digest: version for (version, _), digest in COCO_SHA256.items()}
    return versions.get(sha256, "unknown")
