"""A transformer layer and decoder, in the style that the recipe's parametrization names.

| parametrization    | branch                  | stream (`residual.join_of`)              | logits of attention |
|--------------------|-------------------------|------------------------------------------|---------------------|
| standard           | f(norm(x))              | x + branch                               | q.k / D^1/2         |
| mup                | f(norm(x))              | x + (base_depth / depth)^1/2 * branch    | q.k / D             |
| unit_scaled, u_mup | f(norm(x))              | (x + tau_i * branch) / (1 + tau_i^2)^1/2 | q.k / D             |
| munit              | norm(f(x)), Res-Post-LN | (1 - tau)^1/2 * x + tau^1/2 * branch     | q.k / D^1/2         |

mu-nit scaling asks for an ordinary graph: its linear layers have one factor for output and grad_input, and its sums
none of their own in backward. What Adam-like optimizers do not see is that of unit scaling here too: the factor on
weights' gradients, and those of loss and readout, which let gradients start at scale one (the paper says nothing of the
scale of the loss). Attention and the activation keep the factors of unit scaling too; output and gradients have the
same, so that the graph stays an ordinary one. The paper does not say either whether a norm stands before the readout;
here one does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fp8sim import recipes
from fp8sim.nn.attention import Attention, KeyValueCache
from fp8sim.nn.config import TransformerConfig
from fp8sim.nn.embedding import Embedding
from fp8sim.nn.linear import Linear, LinearReadout
from fp8sim.nn.mlp import MLP
from fp8sim.nn.norms import LayerNorm, RMSNorm
from fp8sim.nn.residual import Branch, join_of
from fp8sim.nn.roles import ResidualStack
from fp8sim.recipes import Recipe
from fp8sim.unit_scaling import functional


class TransformerLayer(torch.nn.Module):
    """x [B, L, W] -> [B, L, W]: attention and an MLP, each with a norm, joined to the residual stream.

    Args:
        config: sizes and hyperparameters of the whole model.
        block: which of its blocks this is, from 0.
        recipe: of this layer.

    Raises:
        ValueError: a block that the model has not, sizes that do not fit, a field of `config` for another style.
    """

    def __init__(
        self, config: TransformerConfig, block: int = 0, *, recipe: str | Recipe = functional.UNIT_SCALED
    ) -> None:
        super().__init__()
        if not 0 <= block < config.blocks:
            raise ValueError(f"block={block}: the blocks are 0 to {config.blocks - 1}")
        self.recipe = recipe = recipes.parse(recipe)
        config.check_style(recipe)
        self.dropout, self.is_post_norm = config.dropout, recipe.parametrization == "munit"
        self.attention_norm, self.mlp_norm = _norm(config, recipe), _norm(config, recipe)
        self.attention, self.mlp = _attention(config, recipe), _mlp(config, recipe)
        self.attention_join = join_of(config, recipe, 2 * block)
        self.mlp_join = join_of(config, recipe, 2 * block + 1)

    def forward(self, x: torch.Tensor, *, cache: KeyValueCache | None = None) -> torch.Tensor:
        """x [B, L, W] -> [B, L, W]; with a cache, x are the tokens that follow those in it."""

        def attend(h: torch.Tensor) -> torch.Tensor:
            attended: torch.Tensor = self.attention(h, cache=cache)
            return attended

        x = self.attention_join(lambda h: self._branch(attend, self.attention_norm, h), x)
        return self.mlp_join(lambda h: self._branch(self.mlp, self.mlp_norm, h), x)

    def _branch(self, function: Branch, norm: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        """x -> function and norm, in the order of the style, and dropout."""
        output: torch.Tensor = norm(function(x)) if self.is_post_norm else function(norm(x))
        if self.dropout == 0:
            return output
        return functional.dropout(output, self.dropout, self.training, recipe=self.recipe)


class TransformerDecoder(torch.nn.Module):
    """tokens [B, L] -> logits [B, L, V]: embedding, blocks, norm, readout.

    Every recipe leaves the embedding in high precision; which other layers stay there too the recipe says by role
    (`Recipe.high_precision`).

    Args:
        config: sizes and hyperparameters.
        recipe: of all layers; its parametrization is the style.
        block_recipes: one for each block in place of `recipe`, such as high precision in the first and the last; of the
            same parametrization.

    Raises:
        ValueError: sizes that do not fit, an unknown recipe, another number of `block_recipes` or parametrization, a
            field of `config` for another style.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        recipe: str | Recipe = functional.UNIT_SCALED,
        block_recipes: Sequence[str | Recipe] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.recipe = config, recipes.parse(recipe)
        recipe = self.recipe
        by_block = _block_recipes(config, recipe, block_recipes)
        start = config.start_of("embedding", config.vocabulary, recipe)
        self.embedding = Embedding(config.vocabulary, config.width, recipe=recipe, **start._asdict())
        self.layers = ResidualStack(*(TransformerLayer(config, i, recipe=r) for i, r in enumerate(by_block)))
        self.norm = _norm(config, recipe)
        start = config.start_of("readout", config.width, recipe)
        self.readout = LinearReadout(config.width, config.vocabulary, recipe=recipe, **start._asdict())
        for name, module in self.named_modules():
            if isinstance(module, Linear | Attention):
                module.name = name

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as after `to_empty` of a model that was made on the meta device."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if reset is not None and module is not self:
                reset()

    def forward(self, tokens: torch.Tensor, *, caches: Sequence[KeyValueCache] | None = None) -> torch.Tensor:
        """tokens [B, L] -> logits [B, L, V].

        Args:
            tokens: integers in 0 .. V - 1; with caches, those that follow the tokens in them.
            caches: of `new_caches`, filled in place.

        Raises:
            ValueError: tokens of another shape, another number of caches than blocks; see also `Attention.forward`.
        """
        if tokens.ndim != 2:
            raise ValueError(f"a decoder takes tokens [B, L], got {list(tokens.shape)}: use .unflatten() or [None]")
        if caches is not None and len(caches) != len(self.layers):
            raise ValueError(f"got {len(caches)} caches for {len(self.layers)} blocks: use new_caches()")
        x = self.embedding(tokens)
        for index, layer in enumerate(self.layers):
            x = layer(x, cache=None if caches is None else caches[index])
        logits: torch.Tensor = self.readout(self.norm(x))
        return logits

    def new_caches(self) -> list[KeyValueCache]:
        """Empty caches, one for each block, to decode a batch of sequences with."""
        return [KeyValueCache() for _ in self.layers]

    def loss(
        self, tokens: torch.Tensor, targets: torch.Tensor, *, ignore_index: int = -100, z_loss: float = 0.0
    ) -> torch.Tensor:
        """Mean cross-entropy of softmax(alpha_loss_softmax * logits), in nats, computed in float32 or wider.

        Args:
            tokens, targets: [B, L].
            ignore_index: the target of positions that do not count.
            z_loss: see `functional.cross_entropy`.

        Returns:
            []. Under a unit-scaled recipe its gradient is that of the sum times `rules.cross_entropy`.

        Raises:
            ValueError: shapes that do not fit.
        """
        logits = self(tokens)
        return functional.cross_entropy(
            logits.flatten(0, 1),
            targets.flatten(),
            ignore_index=ignore_index,
            mult=self.config.alpha_loss_softmax,
            z_loss=z_loss,
            recipe=self.recipe,
        )


def _block_recipes(
    config: TransformerConfig, recipe: Recipe, block_recipes: Sequence[str | Recipe] | None
) -> list[Recipe]:
    """The recipe of each block."""
    if block_recipes is None:
        return [recipe] * config.blocks
    parsed = [recipes.parse(block) for block in block_recipes]
    styles = [block.parametrization for block in parsed]
    if styles != [recipe.parametrization] * config.blocks:
        raise ValueError(
            f"block_recipes of {', '.join(styles) or 'no'} parametrization: expected {config.blocks} of "
            f"{recipe.parametrization}, as the recipe of the model"
        )
    return parsed


def _norm(config: TransformerConfig, recipe: Recipe) -> RMSNorm | LayerNorm:
    kind = config.norm or ("layer" if recipe.parametrization == "munit" else "rms")
    module = LayerNorm if kind == "layer" else RMSNorm
    return module(config.width, elementwise_affine=config.norm_gain, recipe=recipe)


def _attention(config: TransformerConfig, recipe: Recipe) -> Attention:
    power = config.scale_power
    if power is None:
        power = 0.5 if recipe.parametrization in ("standard", "munit") else 1.0
    return Attention(
        config.width,
        config.heads,
        key_value_heads=config.key_value_heads,
        rotary_base=config.rotary_base,
        qk_norm=config.qk_norm,
        norm_gain=config.norm_gain,
        mult=config.alpha_attention_softmax,
        scale_power=power,
        root_softmax=config.root_softmax,
        dropout=config.dropout,
        context=config.context,
        bias=config.bias,
        init_std=config.start_of("hidden", config.width, recipe).init_std,
        recipe=recipe,
    )


def _mlp(config: TransformerConfig, recipe: Recipe) -> MLP:
    inner = round(config.expansion * config.width)
    up, down = (config.start_of("hidden", fan_in, recipe).init_std for fan_in in (config.width, inner))
    return MLP(
        config.width,
        config.expansion,
        activation=config.activation,
        mult=config.alpha_ffn_activation,
        bias=config.bias,
        constraint="to_output_scale" if recipe.parametrization == "munit" else None,
        init_stds=(up, down),
        recipe=recipe,
    )
