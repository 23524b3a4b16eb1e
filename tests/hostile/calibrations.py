"""A calibration that is good."""

from recover.calibration.weights import Calibration, Combination, FittedDensity, Gain, InputFile

SOURCE = InputFile("a.gguf", 10, {"Q8_0": 2})
GAIN = Gain(0.5, (0.4, 0.6), 5)
ROW = (0.0, -1.0, 0.0, -0.5, 0.5)
VARYING = (0.5, -1.0, 0.0, 0.0, 0.0)
GOOD = Calibration(
    inputs=(SOURCE, SOURCE),
    truth=SOURCE,
    constrained=True,
    by_role=True,
    n_depths=2,
    left_out="tensor",
    held_out=GAIN,
    uncalibrated=GAIN,
    combinations=(
        Combination(("Q8_0", "Q4_K"), None, None, (0.75, 0.25), 2, 512, GAIN, GAIN, None),
        Combination(("Q8_0", "Q4_K"), "attn_q", 1, (0.5, 0.5), 1, 256, GAIN, GAIN, GAIN),
    ),
    densities=(FittedDensity("Q8_0", True, False, (9, 8, 7), (ROW, ROW, ROW, VARYING)),),
)
