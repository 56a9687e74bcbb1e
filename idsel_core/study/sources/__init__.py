"""Where questions and images come from: one file a kind of source; `idsel_core.study.dataset` is the door to all."""
