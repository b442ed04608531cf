"""Datasets from archives: each in its true layout, served from this machine, and all that goes wrong on the way."""

import dataclasses
import io
import json
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from archive_server import ArchiveServer, Files, below, tarred, tree, zipped
from conftest import WriteDataset
from omegaconf import OmegaConf
from run_command import REPOSITORY, script, train

from vld.commands.prepare import _fetches, prepare
from vld.config.command_settings import PrepareConfig
from vld.config.errors import UserError
from vld.config.settings import DatasetConfig
from vld.data import catalog
from vld.data.catalog import Archive, Source
from vld.data.folder import DatasetFiles, DomainFiles, list_csv, list_dataset
from vld.data.unpack import unpack
from vld.data.verify import check_content
from vld.machine.terminal import Terminal

CLASSES = ("bird", "car")
FROM_CSV = DatasetConfig(name="mine", folder="none", csv="mine.csv")


def config(name: str, data_dir: Path, server: ArchiveServer, verify: str = "warn") -> PrepareConfig:
    preset = OmegaConf.load(REPOSITORY / f"conf/dataset/{name}.yaml")
    dataset = DatasetConfig(name=name, folder=preset.folder, verify=verify, mirror=server.url, checksum="off")
    return PrepareConfig(dataset=dataset, data_dir=str(data_dir))


def prepared(server: ArchiveServer, data_dir: Path, name: str = "pacs", verify: str = "warn") -> DatasetFiles:
    return prepare(config(name, data_dir, server, verify), Terminal())


def refusal(*options: str) -> list[str]:
    """The lines on standard error of a command that has to be refused."""
    done = script("prepare.py", *options)
    assert done.returncode == 2, done.stdout
    return done.stderr.splitlines()


def nothing_half_made(data_dir: Path) -> None:
    assert [path.name for path in data_dir.iterdir() if path.name != "archives"] == []


Layout = Callable[[Callable[..., Files]], tuple[Files, Files]]
"""Of images (`write_dataset`'s): the archives by file name, and the files that have to be there in the end."""


def packed(archive: str, pack: Callable[[Files], bytes], folder: str, *domains: str, **others: bytes) -> Layout:
    """A dataset in a folder of its archive. others: what is there besides."""

    def layout(images: Callable[..., Files]) -> tuple[Files, Files]:
        expected = images(domains=domains, classes=CLASSES)
        return {archive: pack(below(folder, expected) | others)}, expected

    return layout


def vlcs_nested(images: Callable[..., Files]) -> tuple[Files, Files]:
    expected = images(domains=("LabelMe", "SUN09"), classes=CLASSES)
    members = {}
    for path, content in expected.items():
        domain, rest = path.split("/", 1)
        members |= {f"VLCS/{domain}/{part}/{rest}": content for part in ("full", "train", "test")}
    return {"VLCS.tar.gz": tarred(members)}, expected


def vlcs_by_numbers(images: Callable[..., Files]) -> tuple[Files, Files]:
    """The other archive: other names of domains, numbers for classes, each domain in two parts."""
    domains = {"CALTECH": "Caltech101", "LABELME": "LabelMe", "PASCAL": "VOC2007", "SUN": "SUN09"}
    classes = ("bird", "car", "chair", "dog", "person")
    members, expected = {}, {}
    for path, content in images(domains=tuple(domains), classes=tuple("01234")).items():
        domain, label, name = path.split("/")
        part = "test" if name < "002" else "full"
        members[f"VLCS/{domain}/{part}/{label}/{part}_imgs_{name}"] = content
        expected[f"{domains[domain]}/{classes[int(label)]}/{part}_imgs_{name}"] = content
    return {"VLCS.tar.gz": tarred(members)}, expected


def terra_incognita(images: Callable[..., Files]) -> tuple[Files, Files]:
    """Images of five locations and three categories, one of which is not kept; one image has two of the others."""
    photographs = images(domains=("a", "b"), classes=("x",), per_class=40, special=False).values()
    categories = [{"id": 30, "name": "bird"}, {"id": 7, "name": "dog"}, {"id": 9, "name": "car"}]
    parts: dict[str, dict[str, list[Any]]] = {
        name: {"categories": categories, "images": [], "annotations": []}
        for name in ("cis_test", "cis_val", "train", "trans_test", "trans_val")
    }
    members, expected = {}, {}
    for number, content in enumerate(photographs):
        name = f"image-{number:03d}.jpg"
        members[f"eccv_18_all_images_sm/{name}"] = content
        location = (38, 46, 100, 43, 120)[number % 5]
        part = list(parts.values())[number % 4]
        part["images"].append({"id": f"i{number}", "file_name": name, "location": location})
        kept = [(30, "bird"), (7, "dog")] if number == 0 else [((30, "bird"), (7, "dog"), (9, "car"))[number // 5 % 3]]
        for category, label in kept:
            part["annotations"] += 2 * [{"image_id": f"i{number}", "category_id": category}]  # boxes around two animals
            if location != 120 and label != "car":
                expected[f"location_{location}/{label}/{name}"] = content
    annotations = {f"{name}_annotations.json": json.dumps(told).encode() for name, told in parts.items()}
    archives = {
        "eccv_18_annotations.tar.gz": tarred(below("eccv_18_annotation_files", annotations)),
        "eccv_18_all_images_sm.tar.gz": tarred(members),
    }
    assert {path.split("/")[1] for path in expected} == {"bird", "dog"}
    assert len([path for path in expected if path.endswith("image-000.jpg")]) == 2
    return archives, expected


def domain_net(images: Callable[..., Files]) -> tuple[Files, Files]:
    domains = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
    everything = images(domains=domains)
    archives = {
        f"{domain}.zip": zipped({path: its for path, its in everything.items() if path.startswith(f"{domain}/")})
        for domain in domains
    }
    duplicates = ["clipart/cat/000.png", "sketch/dog/003.png"]
    archives["domain_net_duplicates.txt"] = "\n".join(duplicates).encode()
    return archives, {path: content for path, content in everything.items() if path not in duplicates}


PACS = ("art_painting", "cartoon", "photo", "sketch")
MACS = {"__MACOSX/a/PACS_copy/photo/._dog": b"what a Mac adds"}
DATASETS: dict[str, Layout] = {
    "pacs": packed("PACS.zip", zipped, "kfold", "photo", "sketch"),
    "pacs, another top folder": packed("PACS.zip", tarred, "a/PACS_copy", *PACS, **MACS),
    "vlcs": packed("VLCS.tar.gz", tarred, "VLCS", "LabelMe", "SUN09"),
    "vlcs, nested": vlcs_nested,
    "vlcs, the other archive": vlcs_by_numbers,
    "office_home": packed("office_home.zip", zipped, "OfficeHomeDataset_10072016", "Art", "Real World"),
    "terra_incognita": terra_incognita,
    "domain_net": domain_net,
}


@pytest.mark.parametrize("layout", DATASETS)
def test_each_dataset_is_fetched_and_arranged(
    layout: str,
    server: ArchiveServer,
    tmp_path: Path,
    image_files: Callable[..., Files],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = layout.partition(",")[0]
    archives, expected = DATASETS[layout](image_files)
    server.files |= archives
    monkeypatch.setattr("vld.machine.disk.free_disk", lambda _: 10**12)  # what the whole of DomainNet takes
    data_dir = tmp_path / "data"
    files = prepared(server, data_dir, name)
    assert tree(files.root) == expected
    assert sum(len(domain.files) for domain in files.domains) == len(expected)
    assert f"warning: dataset={name}: " in capsys.readouterr().out  # so few images
    assert {path.name for path in data_dir.glob("[!.]*")} == {"archives", "stores", files.root.name}
    # A dataset that is there is taken as it is.
    server.files.clear()
    assert prepared(server, data_dir, name) == files


def test_too_little_disk_is_refused_before_any_download(
    server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vld.machine.disk.free_disk", lambda _: 10**11)
    with pytest.raises(
        UserError,
        match=r"data_dir: 244.2 GB of disk are needed for the archives, what they unpack to and the image store; 100.0 GB are",
    ):
        prepared(server, tmp_path / "data", "domain_net")
    assert server.asked == []


def test_known_counts_are_required(server: ArchiveServer, tmp_path: Path, write_dataset: WriteDataset) -> None:
    few = write_dataset(tmp_path / "few", domains=PACS)
    server.files["PACS.zip"] = zipped(below("kfold", tree(few)))
    with pytest.raises(
        UserError, match=r"art_painting has 10 images instead of 2048 .*; delete them and run this again"
    ):
        prepared(server, tmp_path / "data", verify="strict")
    nothing_half_made(tmp_path / "data")
    # Nor is one trained on that lies there already.
    shutil.copytree(few, tmp_path / "there/PACS")
    small = ("dataset=pacs", "backbone=resnet18", "backbone.weights=none", f"data_dir={tmp_path / 'there'}")
    small += (f"output_dir={tmp_path / 'outputs'}", "image_size=16", "batch_size=1", "optim.steps=1", "keep=[]")
    refused = train(*small, "test_domain=0")
    assert refused.returncode == 2
    assert "art_painting has 10 images instead of 2048" in refused.stderr
    assert "dataset.verify=warn" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    warned = train(*small, "test_domain=0", "dataset.verify=warn")
    assert warned.returncode == 0, warned.stderr
    assert "warning: dataset=pacs: " in warned.stdout


def known_files(name: str, sizes: dict[str, dict[str, int]]) -> DatasetFiles:
    classes = tuple(sorted(next(iter(sizes.values()))))
    domains = []
    for domain, counts in sorted(sizes.items()):
        labels = tuple(i for i, label in enumerate(classes) for _ in range(counts[label]))
        domains.append(DomainFiles(domain, (Path("x.png"),) * len(labels), labels))
    return DatasetFiles(name, Path(name), classes, tuple(domains))


@pytest.mark.parametrize(
    "name, total",
    [("pacs", 9991), ("vlcs", 10729), ("office_home", 15588), ("terra_incognita", 24788), ("domain_net", 586575)],
)
def test_counts_of_every_class_are_required(name: str, total: int) -> None:
    known = {domain: dict(counts) for domain, counts in catalog.CONTENTS[name].by_class.items()}
    assert sum(catalog.CONTENTS[name].domains.values()) == total
    assert check_content(known_files(name, known), "strict") == []
    domain, label = min(known), min(known[min(known)])
    known[domain][label] -= 1
    right = known[domain][label] + 1
    with pytest.raises(UserError, match=f"{label} {right - 1} instead of {right}.*extraction probably stopped"):
        check_content(known_files(name, known), "strict")


def test_duplicates_list_beside_a_mirror(
    server: ArchiveServer,
    tmp_path: Path,
    image_files: Callable[..., Files],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    archives, expected = domain_net(image_files)
    server.files |= archives
    listed = server.files.pop("domain_net_duplicates.txt") + b"\nclipart/cat/absent.png"
    server.files["own.txt"] = listed + b"\nclipart/caf\xe9.png\nclipart/\0.png\nclipart"  # no names of images either
    first, *others = catalog.SOURCES["domain_net"].archives
    first = dataclasses.replace(first, url=f"{server.url}/own.txt")
    source = dataclasses.replace(catalog.SOURCES["domain_net"], archives=(first, *others))
    monkeypatch.setitem(catalog.SOURCES, "domain_net", source)  # type: ignore[arg-type]
    monkeypatch.setattr("vld.machine.disk.free_disk", lambda _: 10**12)
    assert tree(prepared(server, tmp_path / "data", "domain_net").root) == expected
    out = capsys.readouterr().out
    assert "18.4 GB of archives to fetch" in out
    assert "4 of the images it lists are absent, the first of them clipart/cat/absent.png" in out


def test_a_dead_drive_file_leads_to_a_copy(
    server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(*_: object) -> None:
        raise UserError("PACS.zip: cannot be fetched")

    monkeypatch.setattr("vld.commands.prepare.fetch", dead)
    settings = config("pacs", tmp_path / "data", server)
    settings.dataset.mirror = None
    with pytest.raises(UserError, match=r"reported dead in 2026-04; use a copy, .*dataset.mirror=https://"):
        prepare(settings, Terminal())


def test_an_archive_put_there_by_hand_is_used(server: ArchiveServer, archive: bytes, tmp_path: Path) -> None:
    by_hand = tmp_path / "data/archives/pacs/PACS.zip"
    by_hand.parent.mkdir(parents=True)
    by_hand.write_bytes(archive)
    prepared(server, tmp_path / "data")
    assert (tmp_path / "data/PACS/photo").is_dir()
    assert server.asked == []


def test_the_command_says_all_in_one_line(server: ArchiveServer, archive: bytes, tmp_path: Path) -> None:
    options = (f"data_dir={tmp_path / 'data'}", f"dataset.mirror={server.url}", "dataset.checksum=off")
    [line] = refusal(*options)
    assert f"put it at {tmp_path}/data/archives/pacs/PACS.zip and run this again" in line
    server.files["PACS.zip"] = archive
    done = script("prepare.py", *options, "dataset.verify=warn")
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}/data/PACS is ready" in done.stdout
    for bad in (("dataset.verify=maybe", "dataset.mirror=ftp://x"), ("dataset=imagenet",), ("dataset.nome=x",)):
        assert len(refusal(*options, *bad)) == len(bad)


# Archives


def damaged_zip(archive: bytes) -> bytes:
    """A byte of a member's content is another."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        place = max(file.infolist(), key=lambda info: info.file_size).header_offset + 200
    return archive[:place] + bytes([archive[place] ^ 255]) + archive[place + 1 :]


def with_a_link(_: bytes) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as file:
        info = tarfile.TarInfo("kfold/link")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc"
        file.addfile(info)
    return archive.getvalue()


def linked(path: Path, kind: bytes, target: str) -> Path:
    """A tar file of an image and of a link."""
    with tarfile.open(path, "w") as file:
        image, link = tarfile.TarInfo("kfold/photo/dog/1.jpg"), tarfile.TarInfo("kfold/photo/dog/2.jpg")
        image.size = 5
        link.type, link.linkname = kind, target
        file.addfile(image, io.BytesIO(b"image"))
        file.addfile(link)
    return path


def test_another_name_of_a_file_in_an_archive_is_unpacked(tmp_path: Path) -> None:
    """Below a folder with .. in its path, too."""
    (tmp_path / "there").mkdir()
    archive = linked(tmp_path / "a.tar", tarfile.LNKTYPE, "kfold/photo/dog/1.jpg")
    unpack(archive, tmp_path / "there" / ".." / "new", lambda *_: None)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("new/kfold/photo/dog/*")} == {
        "1.jpg": b"image",
        "2.jpg": b"image",
    }


@pytest.mark.parametrize(("kind", "target"), [(tarfile.LNKTYPE, "../../etc/passwd"), (tarfile.SYMTYPE, "1.jpg")])
def test_links_that_may_lead_elsewhere_are_refused(kind: bytes, target: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not trust this archive"):
        unpack(linked(tmp_path / "a.tar", kind, target), tmp_path / "new", lambda *_: None)


def with_a_byte_changed(_: bytes) -> bytes:
    """Of a tar.gz that tarfile itself takes for whole."""
    random = Random(0)
    content = bytearray(tarred({f"kfold/photo/dog/{number}.jpg": random.randbytes(20_000) for number in range(20)}))
    content[len(content) // 2] ^= 1
    return bytes(content)


BAD_ARCHIVES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "damaged member": (damaged_zip, r"damaged \(Bad CRC-32"),
    "a byte changed, tar.gz": (with_a_byte_changed, "damaged .*CRC"),
    "truncated": (lambda archive: archive[: len(archive) // 2], "no zip or tar file"),
    "in several parts": (
        lambda archive: archive[:-22] + b"PK\6\7" + bytes([1, *[0] * 15]) + archive[-22:],
        "no zip or tar file",
    ),
    "path out": (lambda _: tarred({"../../outside.png": b"x"}), "leads out of the folder"),
    "absolute path": (lambda _: tarred({"/tmp/outside.png": b"x"}), "no folder kfold in it but tmp"),  # inside, then
    "path out, zip": (lambda _: zipped({"kfold/../../outside.png": b"x"}), "leads out of the folder"),
    "link out": (with_a_link, "is a link or a device"),
    "another archive": (lambda _: zipped({"elsewhere/a.png": b"x"}), "no folder kfold in it but elsewhere"),
}


@pytest.mark.parametrize("what", BAD_ARCHIVES)
def test_bad_archives_leave_nothing(what: str, server: ArchiveServer, archive: bytes, tmp_path: Path) -> None:
    spoil, said = BAD_ARCHIVES[what]
    server.files["PACS.zip"] = spoil(archive)
    with pytest.raises(UserError, match=said):
        prepared(server, tmp_path / "data")
    nothing_half_made(tmp_path / "data")
    assert not (tmp_path / "outside.png").exists()
    # Once a whole one is there, all is well.
    shutil.rmtree(tmp_path / "data/archives")
    server.files["PACS.zip"] = archive
    prepared(server, tmp_path / "data")


def test_what_a_killed_process_left_is_no_hindrance(server: ArchiveServer, archive: bytes, tmp_path: Path) -> None:
    left = tmp_path / "data/.preparing-pacs/unpacked/PACS.zip/kfold/photo"
    left.mkdir(parents=True)
    (left / "half.png").write_bytes(b"half")
    server.files["PACS.zip"] = archive
    files = prepared(server, tmp_path / "data")
    assert not list(files.root.rglob("half.png"))
    assert not (tmp_path / "data/.preparing-pacs").exists()


def test_a_bad_data_dir_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "PACS").symlink_to(tmp_path / "nowhere")
    (tmp_path / "glyphs").write_text("")
    for name, data_dir in (
        ("pacs", tmp_path),
        ("pacs", tmp_path / "file"),
        ("pacs", "/proc/data"),
        ("glyphs", tmp_path),
    ):
        [line] = refusal(f"dataset={name}", f"data_dir={data_dir}", "dataset.mirror=http://127.0.0.1:9")
        assert "data_dir=" in line
    lines = refusal("image_size=0", "data_dir=", "dataset.mirror='http://[x'")
    assert sorted(line.split("=")[0] for line in lines) == ["data_dir", "dataset.mirror", "image_size"]


def test_verify_reads_what_is_stored(tmp_path: Path, write_dataset: WriteDataset) -> None:
    write_dataset(tmp_path / "mine")
    options = ("dataset=folder", "dataset.name=mine", f"data_dir={tmp_path}", "image_size=16", "verify=true")
    done = script("prepare.py", *options)
    assert done.returncode == 0, done.stderr
    assert "verified, fingerprint" in done.stdout
    for kind in ("pixels", "views"):
        [path] = (tmp_path / "stores").glob(f"*-{kind}-*/1.uint8")
        whole = path.read_bytes()
        path.write_bytes(bytes(len(whole)))
        [line] = refusal(*options)
        assert re.search("10 images differ from those in the store, the first of them .*photo/cat/000.png", line)
        path.write_bytes(whole)


# Your own data


def test_a_csv_s_order_is_a_folder_s(tmp_path: Path, write_dataset: WriteDataset) -> None:
    root = write_dataset(tmp_path / "mine")
    for name in ("a", "z"):
        (root / "art/cat" / name).mkdir()
    (root / "art/cat/001.png").rename(root / "art/cat/a/1.png")
    (root / "art/cat/002.png").rename(root / "art/cat/z/0.png")
    paths = sorted(root.rglob("*.png"), key=lambda path: path.name)
    lines = [f"{path},{path.relative_to(root).parts[0]},{path.relative_to(root).parts[1]}" for path in paths]
    (tmp_path / "mine.csv").write_text("\ufeffpath,domain,class\r\n" + "\r\n".join(lines))
    listed = list_csv("mine", tmp_path / "mine.csv")
    assert listed.domains == list_dataset("mine", root).domains


def test_a_csv_lists_what_a_folder_holds(tmp_path: Path, write_dataset: WriteDataset) -> None:
    root = write_dataset(tmp_path / "mine")
    lines = ["class,note,path,domain"]
    for path in sorted(root.rglob("*.png"), reverse=True):
        lines.append(f"{path.parent.name},x,{path.relative_to(tmp_path)},{path.parent.parent.name}")
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    options = ("dataset=folder", "dataset.name=mine", f"data_dir={tmp_path}", "backbone=resnet18")
    options += ("backbone.weights=none", "image_size=16", "batch_size=1", "optim.steps=1", "keep=[]", "test_domain=0")
    from_folder = train(*options, f"output_dir={tmp_path / 'a'}")
    from_csv = train(*options, "dataset.csv=mine.csv", f"output_dir={tmp_path / 'b'}")
    assert from_folder.returncode == from_csv.returncode == 0, from_csv.stderr
    [one], [other] = ([path.parent.name for path in (tmp_path / name).rglob("result.json")] for name in "ab")
    assert one == other  # the same run
    listed = prepare(PrepareConfig(FROM_CSV, str(tmp_path)), Terminal())
    assert listed.domains == list_dataset("mine", root).domains


BAD_CSV = {
    "no such file": (None, "cannot be read"),
    "columns": ("file,domain,class\na.png,x,y", "line 2 has no path; its columns must be path, domain, class"),
    "an empty cell": ("path,domain,class\na.png,,y", "line 2 has no domain"),
    "a null byte": ("path,domain,class\na\0.png,x,y", "line 2 has a null byte; save the file as UTF-8"),
    "nothing": ("path,domain,class\n", ": 0 domain(s) found"),
    "classes": ("path,domain,class\na.png,x,u\nb.png,y,v", "x lacks v; y lacks u"),
    "one class": ("path,domain,class\na.png,x,u\nb.png,y,u", "one class only"),
    "few": ("path,domain,class\na.png,x,u\nb.png,x,v\nc.png,y,u\nd.png,y,v", "domain x has 2 images; at least 5"),
}


@pytest.mark.parametrize("what", BAD_CSV)
def test_bad_csv_files_are_named(what: str, tmp_path: Path) -> None:
    text, said = BAD_CSV[what]
    if text is not None:
        (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(UserError, match=re.escape(said) if what != "classes" else said):
        prepare(PrepareConfig(FROM_CSV, str(tmp_path)), Terminal())


def test_archives_have_a_bar_each_and_one_for_all(
    server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives = tuple(Archive(name, f"{server.url}/{name}", size=9) for name in ("a.zip", "b.zip", "c.zip"))
    (tmp_path / "c.zip").write_bytes(b"")  # already there
    told: dict[str, list[tuple[int, int]]] = {}

    def bars(label: str) -> Callable[[int, int], None]:
        return lambda done, total: told.setdefault(label, []).append((done, total))

    def fetched(_: str, path: Path, __: str | None, progress: Callable[[int, int], None]) -> None:
        if path.name != "c.zip":
            progress(4, 10)
            progress(10, 10)

    monkeypatch.setattr("vld.commands.prepare.fetch", fetched)
    source = Source(archives, lambda *_: None)
    for one in _fetches(DatasetConfig(name="mine", folder="mine"), source, tmp_path, Terminal(), bars):
        one()
    assert told["a.zip"] == told["b.zip"] == [(4, 10), (10, 10)]
    assert told["2 archives"] == [(4, 19), (10, 19), (14, 20), (20, 20)]
