"""bitsandbytes' 8-bit AdamW, whose state can be saved and loaded again where it is paged too."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes import functional
from bitsandbytes.optim import AdamW8bit

from trainer.schedule import OptimizerConfig

# As bitsandbytes 0.50 decides in Optimizer8bit.get_state_buffer.
_SMALLEST_PAGED = 100_000


class _AdamW8bit(AdamW8bit):
    """Its state is saved as plain tensors: a pickled paged one would claim to be paged, and no driver would know it."""

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = super().state_dict()
        state["state"] = {key: _plain(value) for key, value in state["state"].items()}
        return state

    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
        super().load_state_dict(state_dict, move_to_device)
        if self.is_paged:
            for state in self.state.values():
                self._page(state)

    def _page(self, state: dict[str, Any]) -> None:
        for name in ("state1", "state2"):
            loaded = state[name]
            if loaded.device.type == "cuda" and loaded.numel() >= _SMALLEST_PAGED:
                paged = functional.get_paged(*loaded.shape, dtype=loaded.dtype, device=loaded.device)
                paged.copy_(loaded)
                self.page_mng.paged_tensors.append(paged)
                state[name] = paged


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value


def make_adamw_8bit(groups: list[dict[str, Any]], optimizer: OptimizerConfig) -> torch.optim.Optimizer:
    """Over `groups`; weights of fewer than 4,096 elements keep 32-bit moments."""
    made: torch.optim.Optimizer = _AdamW8bit(
        groups,
        lr=0.0,  # set before each update by set_learning_rate
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
        is_paged=optimizer.kind == "paged_adamw_8bit",
    )
    return made
