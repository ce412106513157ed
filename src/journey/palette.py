"""What pictures share."""

COLOURS = ("#c1272d", "#0000a7", "#008176", "#eecc16", "#7f3fbf", "#d46a00")
GREY = "#8c8c8c"
