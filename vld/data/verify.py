"""Check that a known dataset is complete: domains, number of classes, images of each."""

from collections import Counter

from vld.config.errors import UserError
from vld.data.catalog import CONTENTS
from vld.data.folder import DatasetFiles

WORST = 4
RETIRED_TERRA = {"location_100": 4741, "location_38": 9736, "location_43": 3970, "location_46": 5883}
DUPLICATES = {"clipart": 704, "infograph": 1596, "painting": 3493, "quickdraw": 0, "real": 2380, "sketch": 1258}
"""Images of each domain of DomainNet that its list of duplicates names."""


def check_content(
    files: DatasetFiles, verify: str, fix: str = "move it away and let prepare.py get it again"
) -> list[str]:
    """Warnings. Raises `UserError` if the content is wrong, unless verify is warn. fix: what to do then."""
    wrong = discrepancies(files)
    if not wrong:
        return []
    shown = "; ".join(wrong[:WORST]) + (f"; and {len(wrong) - WORST} more" if len(wrong) > WORST else "")
    text = f"dataset={files.name}: {files.root} is not the {files.name} that is known: {shown}{_cause(files)}"
    if verify == "warn":
        return [text]
    raise UserError(f"{text}; {fix}, or set dataset.verify=warn to use it as it is")


def discrepancies(files: DatasetFiles) -> list[str]:
    """How a known dataset differs from what it should contain; nothing for unknown datasets."""
    known = CONTENTS.get(files.name)
    if known is None:
        return []
    if set(files.domain_names) != set(known.domains):
        return [f"its domains are {', '.join(files.domain_names)} instead of {', '.join(known.domains)}"]
    wrong = []
    if len(files.classes) != known.classes:
        wrong.append(f"it has {len(files.classes)} classes instead of {known.classes}")
    for domain in files.domains:
        expected = known.by_class[domain.name]
        found = Counter(files.classes[label] for label in domain.labels)
        off = sorted(
            (name for name in expected if found[name] != expected[name]), key=lambda n: -abs(found[n] - expected[n])
        )
        off += sorted(found.keys() - expected.keys())
        if off:
            worst = ", ".join(f"{name} {found[name]} instead of {expected.get(name, 0)}" for name in off[:WORST])
            more = f" and {len(off) - WORST} more classes" if len(off) > WORST else ""
            wrong.append(
                f"{domain.name} has {len(domain.files)} images instead of {known.domains[domain.name]} ({worst}{more})"
            )
    return wrong


def _cause(files: DatasetFiles) -> str:
    """The likely one, as the end of a sentence; nothing where domains are missing or the counts fit none."""
    expected = CONTENTS[files.name].domains
    if files.name == "terra_incognita" and files.sizes == RETIRED_TERRA:
        return (
            " (the retired labelling of 24,330 images, which DomainBed's download gave from 2021-07 to 2024-06; use it with"
            " dataset.verify=warn only to compare with results of that time)"
        )
    extra = {domain: size - expected.get(domain, size) for domain, size in files.sizes.items()}
    if files.name == "domain_net" and any(extra.values()) and all(n in (0, DUPLICATES[d]) for d, n in extra.items()):
        return " (the duplicates were not removed)"
    if any(extra.values()) and all(n <= 0 for n in extra.values()):
        return " (the extraction probably stopped early, or files were deleted)"
    return ""
