"""The colour of each method, the same in every figure and dashboard; colour-blind safe (Okabe and Ito)."""

METHOD_COLORS = {
    "erm": "#0072B2",
    "weight_averaging": "#E69F00",
    "ensemble": "#009E73",
    "model_soup": "#D55E00",
    "greedy_soup": "#CC79A7",
    "ensemble_of_runs": "#56B4E9",
}
