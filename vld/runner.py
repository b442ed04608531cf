"""Leave one domain out: check the inputs, decode the images once, fine-tune one run per test domain."""

from pathlib import Path

from vld.data.images import decode_dataset
from vld.data.picture import draw_picture
from vld.device import describe, set_up
from vld.evaluation import evaluation_images
from vld.inputs import check_inputs, initial_classifier
from vld.methods import first_member
from vld.run import Outcome, Run, train_once
from vld.runs.atomic import write_atomically
from vld.runs.identity import weights_fingerprint
from vld.runs.keep import bytes_kept, check_disk, checkpoint_bytes, megabytes
from vld.settings import Config
from vld.terminal import Terminal


def run_all(config: Config, terminal: Terminal) -> list[Outcome]:
    """Fine-tune with each test domain left out in turn; a run that fails does not stop the others."""
    inputs = check_inputs(config)
    set_up(inputs.device, config.deterministic)
    terminal.say(
        f"{config.dataset.name}, {config.backbone.name} at {config.image_size} px, dropout {config.dropout:g},"
        f" {config.optim.name} lr {config.optim.lr:g}, {config.optim.steps} steps of"
        f" {len(inputs.files.domains) - 1} x {config.batch_size} images, seed {config.seed};"
        f" on {describe(inputs.device)} in {inputs.precision}"
    )
    for method, start in (("weight_averaging", config.averaging.start), ("ensemble", config.ensemble.start)):
        if start > config.optim.steps:
            begins = first_member(start, config.optim.steps, config.eval_every)
            terminal.say(f"{method} begins at step {begins}, since its start ({start}) lies beyond the last step")
    with terminal.counting(f"decoding {config.dataset.name}") as progress:
        dataset = decode_dataset(inputs.files, config.image_size, config.dataset.store_size, progress)
    fingerprint = weights_fingerprint(inputs.weights)
    runs = [Run(config, inputs, dataset, fingerprint, test_domain) for test_domain in inputs.test_domains]
    _forecast_disk(runs, inputs.existing_folder, terminal)
    picture = Path(config.output_dir) / "datasets" / f"{dataset.name}-{dataset.fingerprint[:8]}.png"
    if not picture.exists():
        write_atomically(picture, lambda path: draw_picture(dataset, path))
        terminal.say(f"a picture of the dataset: {picture}")
    return [train_once(run, terminal) for run in runs]


def _forecast_disk(runs: list[Run], existing_folder: Path, terminal: Terminal) -> None:
    """Say what the runs that are not finished will take. Raises `UserError` where the disk has less."""
    config, inputs, classes = runs[0].config, runs[0].inputs, len(runs[0].dataset.classes)
    model = initial_classifier(config, inputs.weights, inputs.precision, classes)
    kept = sum(
        bytes_kept(config.keep, model, evaluation_images(run.dataset, run.test_domain), classes)
        for run in runs
        if not run.directory.result_file.exists()
    )
    if kept:
        meanwhile = checkpoint_bytes(model, config.optim.name)
        check_disk(kept, meanwhile, existing_folder)
        terminal.say(
            f"keeps up to {megabytes(kept)} in {config.output_dir}; checkpoints take up to {megabytes(meanwhile)} meanwhile"
        )
