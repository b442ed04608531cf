"""Does a known dataset hold what it must: domains, number of classes, images of each."""

from vld.config.errors import UserError
from vld.data.catalog import CONTENTS
from vld.data.folder import DatasetFiles


def check_content(
    files: DatasetFiles, verify: str, mend: str = "move it away and let prepare.py get it again"
) -> list[str]:
    """What is to be warned of. Raises `UserError` where the content is wrong, unless verify is warn; mend: what to do then."""
    known = CONTENTS.get(files.name)
    wrong = discrepancies(files)
    if known is None or not wrong:
        return []
    shown = "; ".join(wrong[:4]) + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else "")
    text = f"dataset={files.name}: {files.root} is not the {files.name} that is known: {shown}"
    if verify == "warn":
        return [text]
    if known.approximate and set(known.domains) == set(files.domain_names) and known.classes == len(files.classes):
        return [f"{text} (those counts are quoted widely, and were not counted first-hand)"]
    raise UserError(f"{text}; {mend}, or say dataset.verify=warn to use it as it is")


def discrepancies(files: DatasetFiles) -> list[str]:
    """In what a known dataset differs from what is known of it; nothing for datasets that are not known."""
    known = CONTENTS.get(files.name)
    if known is None:
        return []
    if set(files.domain_names) != set(known.domains):
        return [f"its domains are {', '.join(files.domain_names)} instead of {', '.join(known.domains)}"]
    wrong = []
    if len(files.classes) != known.classes:
        wrong.append(f"it has {len(files.classes)} classes instead of {known.classes}")
    for domain in files.domains:
        expected = known.domains[domain.name]
        if len(domain.files) == expected and not known.by_class.get(domain.name):
            continue
        by_class = [
            f"{label} {found} instead of {right}"
            for i, label in enumerate(files.classes)
            if (found := domain.labels.count(i)) != (right := known.by_class.get(domain.name, {}).get(label, found))
        ]
        if len(domain.files) != expected or by_class:
            detail = f" ({', '.join(by_class)})" if by_class else ""
            wrong.append(f"{domain.name} has {len(domain.files)} images instead of {expected}{detail}")
    return wrong
