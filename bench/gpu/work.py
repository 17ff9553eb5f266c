"""The work of a picture and the device's limit, counted, not measured (docs/performance.md).

FLOP as torch's FlopCounterMode counts them, two for a multiplication with an addition.
"""

from dataclasses import dataclass

PEAK = 989.5e12  # FLOP a second: H100 and H200 SXM, dense, bfloat16


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOP of the parts of one picture at full size."""

    text: float  # both prompts
    forward: float  # of the UNet, one row
    decode: float  # of the VAE

    def step(self, pictures: int = 1) -> float:
        """With guidance: two rows of each picture."""
        return 2 * pictures * self.forward

    def picture(self, steps: int) -> float:
        return self.text + steps * self.step() + self.decode


WORK = {
    "sd1": Work(text=2 * 0.013e12, forward=0.803e12, decode=2.515e12),  # 512x512
    "sdxl": Work(text=2 * 0.111e12, forward=6.761e12, decode=10.47e12),  # 1024x1024
}


def rate(flop: float, seconds: float) -> str:
    """How fast that was."""
    speed = flop / seconds
    return f"{speed / 1e12:.0f} TFLOP/s, {100 * speed / PEAK:.0f} % of an H100's peak"
