"""A technique of one's own: words behind whatever prompt the denoiser is told."""

from dataclasses import dataclass, replace

from gate_lightning import Technique


@dataclass(frozen=True)
class Suffix(Technique):
    text: str = "a detailed drawing"

    short = "text"  # `suffix: a sketch` is `suffix: {text: a sketch}`
    order = 15  # behind the prompt

    def apply(self, conditioning, images, conditions, backbone):
        return replace(conditioning, prompts=tuple(f"{prompt}, {self.text}" for prompt in conditioning.prompts))
