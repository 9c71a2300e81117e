"""DeepSeek-MoE (arXiv 2401.06066, `model_type: deepseek`) for transformers, which has no class of its own for it.

Llama's attention and blocks, Qwen2-MoE's experts and softmax router. Names on disk are those of the published
checkpoints; the Python code in their folders is not run.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers import initialization as init
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.models.llama.modeling_llama import (
    LlamaForCausalLM,
    LlamaModel,
    LlamaPreTrainedModel,
)
from transformers.models.qwen2_moe.modeling_qwen2_moe import (
    Qwen2MoeExperts,
    Qwen2MoeMLP,
    Qwen2MoeTopKRouter,
)

MODEL_TYPE = "deepseek"


class DeepseekConfig(LlamaConfig):
    """The published config.json; keys that it lacks have the values of the published code."""

    model_type = MODEL_TYPE
    attribute_map = {"num_experts": "n_routed_experts"}  # noqa: RUF012
    moe_intermediate_size: int = 1407
    n_routed_experts: int = 64
    n_shared_experts: int = 2
    num_experts_per_tok: int = 6
    first_k_dense_replace: int = 0
    moe_layer_freq: int = 1
    norm_topk_prob: bool = False

    def is_moe(self, block: int) -> bool:
        """Whether decoder block `block` holds experts."""
        return block >= self.first_k_dense_replace and block % self.moe_layer_freq == 0


class DeepseekMoe(nn.Module):
    """Routed experts, each token's k likeliest, and shared ones that every token passes."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.experts = Qwen2MoeExperts(config)
        self.gate = Qwen2MoeTopKRouter(config)
        shared = config.moe_intermediate_size * config.n_shared_experts
        self.shared_experts = Qwen2MoeMLP(config, intermediate_size=shared)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[windows, length, hidden]` to the same."""
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, weights, chosen = self.gate(tokens)
        routed = self.experts(tokens, chosen, weights).view_as(hidden_states)
        out: Tensor = routed + self.shared_experts(hidden_states)
        return out


class _Initialized(LlamaPreTrainedModel):
    config_class = DeepseekConfig

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, Qwen2MoeExperts | Qwen2MoeTopKRouter):
            for parameter in module.parameters():
                init.normal_(parameter, mean=0.0, std=self.config.initializer_range)


class DeepseekModel(_Initialized, LlamaModel):
    """The decoder: Llama's, with experts in most blocks."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__(config)
        for index, block in enumerate(self.layers):
            if config.is_moe(index):
                block.mlp = DeepseekMoe(config)
        self.post_init()  # type: ignore[no-untyped-call]


class DeepseekForCausalLM(_Initialized, LlamaForCausalLM):
    """The language model."""

    def __init__(self, config: DeepseekConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        self.model = DeepseekModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]


def register() -> None:
    """Let transformers' Auto classes build and load the type; a second call changes nothing."""
    AutoConfig.register(MODEL_TYPE, DeepseekConfig, exist_ok=True)
    AutoModelForCausalLM.register(DeepseekConfig, DeepseekForCausalLM, exist_ok=True)
    experts = get_checkpoint_conversion_mapping("qwen2_moe")
    register_checkpoint_conversion_mapping(MODEL_TYPE, experts, overwrite=True)
