"""Names, colours and markers, the same in every figure, table and dashboard; colour-blind safe (Okabe and Ito)."""

METHOD_COLORS = {
    "erm": "#0072B2",
    "weight_averaging": "#E69F00",
    "ensemble": "#009E73",
    "model_soup": "#D55E00",
    "greedy_soup": "#CC79A7",
    "ensemble_of_runs": "#56B4E9",
    "connectivity": "#000000",
}
METHOD_MARKERS = {
    "erm": "o",
    "weight_averaging": "s",
    "ensemble": "D",
    "model_soup": "*",
    "greedy_soup": "P",
    "ensemble_of_runs": "^",
    "connectivity": "x",
}
METHOD_NAMES = {
    "erm": "ERM",
    "weight_averaging": "weight averaging",
    "ensemble": "ensemble",
    "model_soup": "model soup",
    "greedy_soup": "greedy soup",
    "ensemble_of_runs": "ensemble of runs",
    "connectivity": "midpoint of weights",
}
DATASET_NAMES = {
    "pacs": "PACS",
    "vlcs": "VLCS",
    "office_home": "OfficeHome",
    "terra_incognita": "TerraIncognita",
    "domain_net": "DomainNet",
}
"""As papers write them."""
# ERM with dropout, from light to dark with the rate (Tol's sand and wine, then black).
DROPOUT_COLORS = ((0.7, "#DDCC77"), (0.93, "#882255"), (1.0, "#000000"))


def dataset_name(name: str) -> str:
    """As papers write it; of other datasets the name is as it is."""
    return DATASET_NAMES.get(name, name)


def series_color(method: str, dropout: float | None) -> str:
    """A method's colour; ERM with dropout, which the study is about, has colours of its own."""
    if method == "erm" and dropout:
        return next(color for most, color in DROPOUT_COLORS if dropout <= most)
    return METHOD_COLORS[method]
