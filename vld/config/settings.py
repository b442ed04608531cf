# ruff: noqa: RUF009 - `option` makes fields
"""Every setting of a run, declared once: its type, default, meaning, allowed values and part in a run's id.

`vld.study.typed_settings` fills the classes from the command line; `vld.config.checked` refuses what is not allowed.
"""

import difflib
from dataclasses import dataclass
from typing import Any

from vld.config import checks as must
from vld.config.names import COMBINATIONS, KEEPABLE, METHODS
from vld.config.options import (
    IF_CHANGED,
    MISSING,
    NEVER,
    choice,
    group,
    option,
    options_of,
)


@dataclass
class DatasetConfig:
    name: str = option(MISSING, "its name in run directories and tables", must.FOLDER_NAME)
    folder: str = option(
        MISSING, "its folder below data_dir, holding <domain>/<class>/<images>", identity=NEVER
    )  # what is in it counts, not where it is
    store_size: int = option(
        256, "decoded training images are at most this high and wide (never upsampled)", must.whole(8)
    )
    csv: str | None = option(
        None, "instead of folders: a file below data_dir with the columns path, domain, class", identity=NEVER
    )
    curve_images: int | None = option(
        None,
        "evaluate the learning curve on a subset: this many images of each *out* part, four times as many of the left-out"
        " domain's *in* part; selected steps and the last are evaluated in full (domain_net: 1000). null: always in full",
        must.whole(1),
    )
    verify: str = choice("strict|warn", "known dataset with wrong counts: strict refuses, warn uses it", identity=NEVER)
    checksum: str = choice(
        "strict|off", "published check sums of archives: strict refuses others, off takes them", identity=NEVER
    )
    truncated: str = choice(
        "refuse|allow",
        "truncated images: refuse them, or allow (use what can be read, the rest is grey)",
        identity=NEVER,
    )  # the images themselves are part of the identity
    max_megapixels: int = option(179, "larger images are refused, as broken", must.whole(1), identity=NEVER)
    mirror: str | None = option(
        None, "a URL to fetch archives from instead of the official sources", must.URL, identity=NEVER
    )


@dataclass
class BackboneConfig:
    name: str = option(MISSING, "what the backbone is called in tables")
    library: str = choice("torchvision|timm", "where its code is: torchvision or timm")
    architecture: str = option(MISSING, "its name in that library")
    published: str | None = option(
        None, "published weights: a torchvision weights name, or a package", identity=NEVER
    )  # the weights themselves are part of the identity, wherever they come from
    weights: str | None = option(
        None,
        "null: the published ones; a state_dict file; a run directory (its last step); none: random values, nothing frozen",
        identity=NEVER,
    )
    last_layer: str = choice(
        "auto|given|new",
        "initial last layer: given (from backbone.weights), new (from head_seed); auto: given if a run of vld kept the weights",
        identity=NEVER,
    )  # the weights' fingerprint tells
    mean: list[float] = option(
        [0.485, 0.456, 0.406], "mean of the images that it was trained on, by channel", must.MEAN
    )
    std: list[float] = option([0.229, 0.224, 0.225], "their standard deviation", must.STD)
    feature_scale: float = option(
        1.0, "multiplies the representation before dropout; below 1 for features too large for it", must.POSITIVE
    )
    tuning: str = choice(
        "full|linear|head",
        "what is trained: full (all weights); linear (the paper's equation 1: vectors v and the last layer, on frozen"
        " blocks); head (the last layer alone: a linear probe)",
        identity=IF_CHANGED,
    )
    normalize: str = choice(
        "l2|layer|none",
        "for linear: each block's pooled output to length 1 (l2), to mean 0 and variance 1 (layer), none",
        identity=IF_CHANGED,
    )
    batch_norm: str = choice(
        "frozen|trained",
        "batch-norm statistics of pre-trained weights: frozen, or trained and averaged like the weights (as without such)",
        identity=IF_CHANGED,
    )
    stage_dropout: list[float] = option(
        [], "dropout rates at the end of each stage of the network, as [0,0,0.1,0.2]", must.RATES, identity=IF_CHANGED
    )
    stage_dropout_kind: str = choice(
        "element|channel", "what it drops: element (single values) or channel (whole maps)", identity=IF_CHANGED
    )
    stochastic_depth: float = option(
        0.0, "probability that the last residual branch is dropped, less before it", must.RATE, identity=IF_CHANGED
    )


@dataclass
class MethodConfig:
    name: str = option(
        MISSING, "which method's accuracies the table puts forward", must.one_of(*METHODS, *COMBINATIONS)
    )
    members: list[str] = option(
        [],
        "the runs that a combination is made from: the settings that vary, as"
        """ 'method.members=["optim.lr=1e-3,5e-4","seed=0,1,2"]'""",
    )
    member_step: str = choice(
        "last|iid", "which step of its members: last, or iid (each one's of best i.i.d. accuracy)"
    )
    average: str = choice("logits|softmax", "what an ensemble of runs averages: logits or softmax")
    accept: str = choice(
        "mean|pooled",
        "a greedy soup keeps a member unless this falls: i.i.d. accuracy (mean over domains), or that of *out* images pooled",
    )


@dataclass
class OptimConfig:
    name: str = choice("sgd|adam|adamw", "the algorithm: sgd, adam or adamw (decoupled weight decay)")
    lr: float = option(1e-3, "learning rate", must.POSITIVE)
    weight_decay: float = option(1e-4, "weight decay, of all parameters", must.NOT_NEGATIVE)
    momentum: float = option(0.9, "SGD's momentum; beta 1 of Adam and AdamW", must.RATE)
    steps: int = option(10_000, "number of updates", must.whole(1))
    milestones: list[int] = option(
        [5_000], "steps after which the learning rate is multiplied by optim.gamma", must.MILESTONES
    )
    schedule: str = choice("milestones|cosine", "how the rate falls: milestones, cosine (to 0)", identity=IF_CHANGED)
    warm_up: int = option(0, "steps in which the rate rises linearly to optim.lr", must.whole(0), identity=IF_CHANGED)
    gamma: float = option(0.1, "factor at a milestone", must.number("in (0, 1]", lambda value: 0 < value <= 1))
    last_layer_lr_factor: float = option(
        1.0, "the last layer learns at this multiple of optim.lr (Figure 6 of the paper: 10)", must.POSITIVE
    )


@dataclass
class AveragingConfig:
    """The average of the weights of steps start, start + interval, …"""

    start: int = option(300, "first step of the weight average", must.whole(1))
    interval: int = option(1, "1: the weights of every step are averaged; 300: those of every 300th", must.whole(1))


@dataclass
class EnsembleConfig:
    """The ensemble of the checkpoints at steps start, start + every, … and the last."""

    start: int = option(300, "first checkpoint of the ensemble", must.whole(1))
    every: int = option(300, "steps between its checkpoints", must.whole(1))


@dataclass
class SwadConfig:
    """SWAD: the average of the weights between two evaluations, which the validation loss chooses."""

    enabled: bool = option(
        False, "SWAD beside the other methods (memory and checkpoints: 2 or 3 more copies of the weights)"
    )
    start_evaluations: int = option(
        3, "N_s: it starts at the first evaluation whose loss is the lowest of this many from it on", must.whole(1)
    )
    end_evaluations: int = option(
        6, "N_e: it ends before this many evaluations in a row are above the threshold", must.whole(1)
    )
    threshold: float = option(
        1.3,
        "r: this multiple of the mean loss of the N_s evaluations (VLCS: 1.2)",
        must.number("at least 1", lambda r: r >= 1),
    )


@dataclass
class WandbConfig:
    mode: str = choice(
        "auto|online|offline|disabled",
        "Weights & Biases: online, offline or disabled; auto: online when logged in, else offline",
    )
    project: str | None = option(None, "null: that of WANDB_PROJECT, else vld")
    entity: str | None = option(None, "a user or team; null: that of WANDB_ENTITY, else the user's default")


@dataclass
class StudyConfig:
    """A named grid of runs that makes one figure of the paper, or one of your own: `hydra.sweeper.params` are its axes."""

    name: str | None = option(None, "the study's name; its preset sets all of study.*")
    shares: list[str] = option([], "other studies, some of whose runs its figure shows as well")
    combinations: list[str] = option(
        [], "methods that combine its runs: model_soup, greedy_soup, …", must.each(must.one_of(*COMBINATIONS))
    )
    members: list[str] = option([], "the axes along which they combine")


@dataclass
class RecipeConfig:
    name: str | None = option(None, "the recipe's name in tables; its preset sets it with what makes the recipe")


@dataclass
class Config:
    """The settings of `train.py`, `benchmark.py` and `combine.py`, and of the runs that other commands look at."""

    study: StudyConfig = group(
        StudyConfig, "a whole grid of runs; its axes can be narrowed: dataset=pacs seed=0", identity=NEVER
    )
    recipe: RecipeConfig = group(
        RecipeConfig, "several settings at once: a rival's, as its paper prescribes, or only its part", identity=NEVER
    )
    dataset: DatasetConfig = group(DatasetConfig, "the images; dataset=folder dataset.name=mine for your own")
    backbone: BackboneConfig = group(
        BackboneConfig, "the pre-trained network; backbone=timm backbone.name=<name> for any of timm's"
    )
    method: MethodConfig = group(
        MethodConfig,
        "what the table puts forward: erm, weight_averaging, ensemble (all are stored) or swad; or made from several runs,"
        " trained first: model_soup, greedy_soup, ensemble_of_runs, connectivity (Figure 1: between two runs)",
        identity=NEVER,
    )
    optim: OptimConfig = group(OptimConfig, "the optimiser, with its learning rate")
    data_dir: str = option("data", "where the datasets' folders are", must.FOLDER, identity=NEVER)
    output_dir: str = option("outputs", "where runs and pictures of the datasets go", must.FOLDER, identity=NEVER)
    test_domain: Any = option(
        "all",
        "the domain left out: all, a name, an index (of sorted names), two at once (a+b, or pairs: every two), or a list [a,b]",
        must.TEST_DOMAIN,
        identity=NEVER,
    )  # each run's own domain is part of its identity
    image_size: int = option(224, "height and width of the images, in pixels", must.whole(8))
    dropout: float = option(0.9, "probability that a unit of the penultimate representation is dropped", must.RATE)
    dropout_schedule: str = choice(
        "constant|rising|falling",
        "that rate over training: constant, rising (from 0) or falling (to 0)",
        identity=IF_CHANGED,
    )
    mixout: float = option(
        0.0,
        "Mixout: probability that a weight of the backbone is replaced by its starting value in a step",
        must.RATE,
        identity=IF_CHANGED,
    )
    mixout_kind: str = choice(
        "filter|point",
        "what Mixout masks: filter (output channels of convolutions) or point (single weights of linear layers)",
        identity=IF_CHANGED,
    )
    warm_start: int = option(
        0,
        "number of first steps that train the last layer alone, without dropout and Mixout",
        must.whole(0),
        identity=IF_CHANGED,
    )
    batch_size: int = option(32, "images from each training domain in one step", must.whole(1))
    eval_every: int = option(300, "steps between evaluations (also at step 0 and the last)", must.whole(1))
    averaging: AveragingConfig = group(AveragingConfig)
    ensemble: EnsembleConfig = group(EnsembleConfig)
    swad: SwadConfig = group(SwadConfig, identity=IF_CHANGED)
    keep: list[str] = option(
        ["erm-last", "erm-last-logits"],
        "what a finished run keeps: <method>-<selection> weights, <method>-<selection>-logits",
        must.each(must.one_of(*KEEPABLE)),
        identity=NEVER,
    )
    seed: int = option(0, "batches, augmentation, dropout masks, and a backbone without pre-trained weights", must.SEED)
    split_seed: int = option(0, "the 80/20 split of each domain", must.SEED)
    holdout: float = option(
        0.2,
        "share of each training domain that is held out, for i.i.d. accuracy; 0: none, all images train",
        must.number("0.2 or 0", lambda share: share in (0.2, 0)),
        identity=IF_CHANGED,
    )
    head_seed: int = option(0, "the last layer's initial values: equal for all runs that a soup may average", must.SEED)
    checkpoint_every: float = option(
        300.0,
        "seconds between checkpoints (0: each step); also on Ctrl-C and SLURM's signals",
        must.SECONDS,
        identity=NEVER,
    )
    if_running: str = choice(
        "wait|skip", "if another process trains the run: wait for its result, or skip it", identity=NEVER
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:<index>", must.DEVICE, identity=NEVER)
    precision: str = choice(
        "auto|fp32|bf16", "fp32, or bf16 (except last layer, sums and averages); auto: bf16 on a GPU", identity=NEVER
    )  # the precision that auto stands for is part of the identity
    compile: str = choice(
        "auto|true|false|graphs",
        "compile network and augmentation; graphs: and launch steps as CUDA graphs; auto: graphs on a GPU, unless deterministic",
        identity=NEVER,
    )
    deterministic: bool = option(False, "the same numbers from every repetition on a GPU, too (slower)", identity=NEVER)
    dry_run: bool = option(
        False, "train.py: check all jobs, show what is finished and what is left to do, and stop", identity=NEVER
    )
    wandb: WandbConfig = group(WandbConfig, identity=NEVER)


def option_names(schema: type = Config) -> tuple[str, ...]:
    """Every option's dotted name, in the order of their declaration."""
    return tuple(options_of(schema))


def unknown_option(key: str, schema: type = Config) -> str:
    """The line for an option that does not exist."""
    names = option_names(schema)
    same_leaf = [name for name in names if name.rpartition(".")[2] == key.rpartition(".")[2]]  # lr: optim.lr
    near = same_leaf or difflib.get_close_matches(key, names, n=1)
    return f"{key}: no such option{f', did you mean {near[0]}?' if near else ''} (--help lists them)"
