# SPDX-License-Identifier: Apache-2.0
"""The six models of the Hugging Face face, `transformers.PreTrainedModel`s on our own modules (`_layers.py`).

Arguments, outputs and the layout of files are those of transformers' classes of the same names, in 4.57 as in 5.x.
Differs, on purpose: `config.return_dict = False` works (traced models too); `output_attentions` gives weights
whatever the attention implementation; non-square `image_size` works; `from_pretrained` raises where weights are
missing, left over or of another shape (see `_loading.py`).
"""

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput

from opendino.checkpoint.convert._hf_config import CONFIG
from opendino.fast.block import Products
from opendino.files import usual_modes
from opendino.hf._fast import fast_copy
from opendino.hf._layers import (
    Dinov2Embeddings,
    Dinov2Encoder,
    Dinov2LayerScale,
    Dinov2PatchEmbeddings,
)
from opendino.hf._loading import adapter_classes, load_checked
from opendino.hf._places import reached
from opendino.hf.configuration import Dinov2Config, Dinov2WithRegistersConfig
from opendino.hf.errors import InputError

try:  # transformers 5
    from transformers.backbone_utils import BackboneType
except ImportError:  # transformers 4.57
    from transformers.utils.backbone_utils import BackboneType  # pyrefly: ignore[missing-module-attribute]

Image = Shaped[Tensor, "B C H W"]
AttentionMask = Shaped[Tensor, "B T"] | Shaped[Tensor, "B _ _ T"]
HiddenStates = bool | Collection[int] | None
"""Whether all hidden states are wanted, or the numbers of those that are; None asks the config."""


class Dinov2PreTrainedModel(PreTrainedModel):
    """What all models without registers share: how weights are drawn, loaded and handled by transformers."""

    config_class = Dinov2Config
    base_model_prefix = "dinov2"
    main_input_name = "pixel_values"
    input_modalities = ["image"]  # noqa: RUF012  as transformers declares it
    supports_gradient_checkpointing = True
    embeddings: Dinov2Embeddings
    encoder: Dinov2Encoder
    _no_split_modules = ["Dinov2Embeddings", "Dinov2Layer"]  # noqa: RUF012  as transformers declares it
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _has_classifier = False

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,  # noqa: ANN401  str, path or None
        *,
        strict: bool = True,
        **kwargs: Any,  # noqa: ANN401  passed on
    ) -> Any:  # noqa: ANN401  the model, or (model, loading info)
        """Load a published name, a repository or a folder, as in transformers, and check that the weights fit.

        Args:
            pretrained_model_name_or_path: as in transformers.
            strict: raise for missing and left-over weights; False warns, as transformers does. With
                `output_loading_info=True` the caller is told what is missing, and nothing is raised either.
            **kwargs: as in transformers, among them fields of the config such as `pos_embed_resize`.

        Raises:
            WeightsError: a broken file, missing or left-over weights, another shape, numbers that are not finite. A
                new classifier on a backbone is no error but a warning.
            MissingFilesError: a folder or file is not at hand and cannot be downloaded; the message says what to do.
            BrokenFileError: `config.json` is no JSON object.
        """
        load = super().from_pretrained
        with reached(pretrained_model_name_or_path, CONFIG, kwargs) as arguments:
            if cls._has_classifier and not any(name in arguments for name in ("config", "num_labels", "id2label")):
                classes = adapter_classes(pretrained_model_name_or_path, arguments)
                arguments |= {} if classes is None else {"num_labels": classes}
            return load_checked(cls, load, pretrained_model_name_or_path, arguments, strict=strict)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  as there
        """As in transformers; who may read other new files may read the weights, which safetensors makes private."""
        with usual_modes(Path(save_directory)):
            return super().save_pretrained(save_directory, *args, **kwargs)

    def bake(self, size: int | tuple[int, int]) -> Any:  # noqa: ANN401  a model of this class
        """A copy for images of one size: its position table is resized now, so that an export holds no resizing.

        Args:
            size: side, or (height, width), in pixels; it becomes `config.image_size` of the copy.

        Returns:
            A model that gives the same numbers at this size, refuses others, and saves and loads like any other; after
            loading, plain transformers and this face resize its table again.

        Raises:
            InputError: the size holds no patch, or the model is baked for another one.
        """
        height, width = (size, size) if isinstance(size, int) else size
        baked = copy.deepcopy(self)
        getattr(baked, baked.base_model_prefix, baked).embeddings.bake((height, width))
        baked.config.image_size = height if height == width else [height, width]
        return baked

    def optimized(self, products: Products, image_size: tuple[int, int] | None = None) -> Any:  # noqa: ANN401  as above
        """What `opendino.optimize` gives of this model."""
        return fast_copy(self, products, image_size)

    def get_input_embeddings(self) -> Dinov2PatchEmbeddings:
        """The module that makes patches into tokens."""
        return getattr(self, self.base_model_prefix, self).embeddings.patch_embeddings

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Only functions of torch.nn.init: transformers 5 makes them pass over weights that were loaded.
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, Dinov2LayerScale):
            nn.init.constant_(module.lambda1, self.config.layerscale_value)
        elif isinstance(module, Dinov2Embeddings):
            nn.init.trunc_normal_(module.position_embeddings, std=std)
            nn.init.trunc_normal_(module.cls_token, std=std)
            for token in (module.mask_token, module.register_tokens):
                if token is not None:
                    nn.init.zeros_(token)

    def _asked(self, name: str, value: Any) -> Any:  # noqa: ANN401  the config's or the caller's
        return getattr(self.config, name, None) if value is None else value

    def _kept(self, hidden_states: HiddenStates) -> set[int] | None:
        """Numbers of the hidden states wanted; None where none are."""
        hidden_states = self._asked("output_hidden_states", hidden_states)
        if not hidden_states:
            return None
        total = self.config.num_hidden_layers + 1
        if isinstance(hidden_states, int):  # a flag
            return set(range(total))
        outside = [i for i in hidden_states if not -total <= i < total]
        if outside:
            raise InputError(f"output_hidden_states: {outside} are no states of this model; it has 0 to {total - 1}")
        return {i % total for i in hidden_states}

    def _run(
        self,
        pixel_values: Image | None,
        masks: Shaped[Tensor, "B N"] | None,
        attention_mask: AttentionMask | None,
        output_attentions: bool | None,
        keep: Collection[int],
    ) -> tuple[Float[Tensor, "B T D"], dict[int, Float[Tensor, "B T D"]], tuple[Tensor, ...] | None]:
        """Tokens after the last block (not normed), the states kept by number, and attention's weights if asked for."""
        if pixel_values is None:
            raise InputError(f"{type(self).__name__}: pixel_values are missing; pass images [B, C, height, width]")
        wanted = bool(self._asked("output_attentions", output_attentions))
        tokens = self.embeddings(pixel_values, masks)
        last, states, attentions = self.encoder(tokens, attention_mask, wanted, keep)
        return last, states, attentions if wanted else None

    def _out(self, output: Any, return_dict: bool | None) -> Any:  # noqa: ANN401  ModelOutput or tuple
        return output if self._asked("return_dict", return_dict) else output.to_tuple()

    def _all_of(self, states: dict[int, Tensor], kept: set[int] | None) -> Any:  # noqa: ANN401  a tuple, with gaps
        """All N + 1 hidden states, None in place of those not asked for."""
        if kept is None:
            return None
        return tuple(states[i] if i in kept else None for i in range(self.config.num_hidden_layers + 1))


class Dinov2WithRegistersPreTrainedModel(Dinov2PreTrainedModel):
    """What all models with registers share."""

    config_class = Dinov2WithRegistersConfig
    base_model_prefix = "dinov2_with_registers"


class Dinov2Model(Dinov2PreTrainedModel):
    """The backbone: images to normed tokens.

    Args:
        config: shape.

    Source: transformers, `Dinov2Model`; Oquab et al. 2023.
    """

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__(config)
        self.embeddings = Dinov2Embeddings(config)
        self.encoder = Dinov2Encoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(
        self,
        pixel_values: Image | None = None,
        bool_masked_pos: Shaped[Tensor, "B N"] | None = None,
        attention_mask: AttentionMask | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: HiddenStates = None,
        return_dict: bool | None = None,
        **_: Any,  # noqa: ANN401  transformers' models swallow what they do not know
    ) -> BaseModelOutputWithPooling | tuple:
        """Features of images.

        Args:
            pixel_values: normalised images, sides of at least one patch.
            bool_masked_pos: true where the mask token replaces a patch.
            attention_mask: [B, T], true for tokens that may be seen, CLS and registers included.
            output_attentions: give attention's weights; None asks the config.
            output_hidden_states: give the tokens before the first and after each block, not normed; or a list of
                their numbers; None asks the config.
            return_dict: False gives a plain tuple of what is there; None asks the config.

        Returns:
            last_hidden_state [B, T, D] (normed; CLS, registers, patches), pooler_output [B, D] (CLS), and
            hidden_states and attentions where asked for.

        Raises:
            InputError: images or masks that do not fit.
        """
        kept = self._kept(output_hidden_states)
        last, states, attentions = self._run(
            pixel_values, bool_masked_pos, attention_mask, output_attentions, kept or ()
        )
        normed = self.layernorm(last)
        output = BaseModelOutputWithPooling(
            last_hidden_state=normed,
            pooler_output=normed[:, 0],
            hidden_states=self._all_of(states, kept),
            attentions=attentions,
        )
        return self._out(output, return_dict)


class Dinov2ForImageClassification(Dinov2PreTrainedModel):
    """The backbone with a linear classifier on CLS and the mean of the patches.

    Args:
        config: shape; `num_labels` is the number of classes.

    Source: transformers, `Dinov2ForImageClassification`; official one-layer linear heads.
    """

    backbone_class: type[Dinov2Model] = Dinov2Model
    _has_classifier = True

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        setattr(self, self.base_model_prefix, self.backbone_class(config))
        self.classifier = nn.Linear(2 * config.hidden_size, self.num_labels) if self.num_labels else nn.Identity()
        self.post_init()

    def forward(
        self,
        pixel_values: Image | None = None,
        labels: Int[Tensor, " B"] | Shaped[Tensor, "B _"] | Float[Tensor, " B"] | None = None,
        attention_mask: AttentionMask | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: HiddenStates = None,
        return_dict: bool | None = None,
        **kwargs: Any,  # noqa: ANN401  arguments of the loss
    ) -> ImageClassifierOutput | tuple:
        """Logits of images, and the loss where labels are given.

        Args:
            pixel_values: normalised images.
            labels: classes [B]; targets [B] for one output (regression); or 0 and 1 for each class [B, classes].
                The kind is `config.problem_type`, or follows from the labels at the first call.
            attention_mask: as in `Dinov2Model.forward`.
            output_attentions: as in `Dinov2Model.forward`.
            output_hidden_states: as in `Dinov2Model.forward`.
            return_dict: as in `Dinov2Model.forward`.
            **kwargs: `num_items_in_batch` of transformers' Trainer.

        Returns:
            loss (with labels), logits [B, classes], hidden_states and attentions where asked for.
        """
        features = getattr(self, self.base_model_prefix)(
            pixel_values,
            attention_mask=attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        tokens = features.last_hidden_state
        first = 1 + getattr(self.config, "num_register_tokens", 0)
        logits = self.classifier(torch.cat([tokens[:, 0], tokens[:, first:].mean(dim=1)], dim=1))
        output = ImageClassifierOutput(
            loss=None if labels is None else self.loss_function(labels, logits, self.config, **kwargs),
            logits=logits,
            hidden_states=features.hidden_states,
            attentions=features.attentions,
        )
        return self._out(output, return_dict)


class Dinov2Backbone(Dinov2PreTrainedModel):
    """The backbone for detectors and segmenters: feature maps of chosen stages.

    Args:
        config: shape; `out_features` or `out_indices` choose the stages.

    Source: transformers, `Dinov2Backbone`.
    """

    backbone_type = BackboneType.TRANSFORMERS
    has_attentions = True

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__(config)
        self.stage_names = list(config.stage_names)
        self.num_features = [config.hidden_size] * len(self.stage_names)
        self.embeddings = Dinov2Embeddings(config)
        self.encoder = Dinov2Encoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @property
    def out_features(self) -> list[str]:
        """Names of the stages given out; setting them sets the config's."""
        return self.config.out_features

    @out_features.setter
    def out_features(self, names: Collection[str] | None) -> None:
        self.config.out_features = names

    @property
    def out_indices(self) -> list[int]:
        """Numbers of the stages given out; setting them sets the config's."""
        return self.config.out_indices

    @out_indices.setter
    def out_indices(self, indices: Collection[int] | None) -> None:
        self.config.out_indices = indices

    @property
    def out_feature_channels(self) -> dict[str, int]:
        """Channels of every stage."""
        return dict(zip(self.stage_names, self.num_features, strict=True))

    @property
    def channels(self) -> list[int]:
        """Channels of the stages given out."""
        return [self.out_feature_channels[name] for name in self.out_features]

    def forward(
        self,
        pixel_values: Image,
        attention_mask: AttentionMask | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: HiddenStates = None,
        return_dict: bool | None = None,
        **_: Any,  # noqa: ANN401  transformers' models swallow what they do not know
    ) -> BackboneOutput | tuple:
        """Feature maps of images.

        Args:
            pixel_values: normalised images.
            attention_mask: as in `Dinov2Model.forward`.
            output_attentions: as in `Dinov2Model.forward`.
            output_hidden_states: as in `Dinov2Model.forward`.
            return_dict: as in `Dinov2Model.forward`.

        Returns:
            feature_maps, one [B, D, h, w] a stage (all tokens [B, T, D] without `config.reshape_hidden_states`),
            normed with `config.apply_layernorm`; hidden_states and attentions where asked for.
        """
        kept = self._kept(output_hidden_states)
        stages = [i % len(self.stage_names) for i in self.out_indices]
        keep = {*stages, *(kept or ())}
        _last, states, attentions = self._run(pixel_values, None, attention_mask, output_attentions, keep)
        maps: Any = tuple(self._map(states[i], pixel_values) for i in stages)
        output = BackboneOutput(
            feature_maps=maps,
            hidden_states=self._all_of(states, kept),
            attentions=attentions,
        )
        return self._out(output, return_dict)

    def forward_with_filtered_kwargs(self, *args: Any, **kwargs: Any) -> BackboneOutput | tuple:  # noqa: ANN401
        """`forward`; the name that transformers' detectors call."""
        return self(*args, **kwargs)

    def _map(self, tokens: Float[Tensor, "B T D"], pixel_values: Image) -> Float[Tensor, "B ..."]:
        if self.config.apply_layernorm:
            tokens = self.layernorm(tokens)
        if not self.config.reshape_hidden_states:
            return tokens
        h, w = self.embeddings.patch_embeddings.grid_of(pixel_values)
        patches = tokens[:, 1 + getattr(self.config, "num_register_tokens", 0) :]
        return patches.transpose(1, 2).reshape(patches.shape[0], -1, h, w).contiguous()


class Dinov2WithRegistersModel(Dinov2WithRegistersPreTrainedModel, Dinov2Model):
    """`Dinov2Model` with registers between CLS and patches. Source: Darcet et al. 2023."""


class Dinov2WithRegistersForImageClassification(Dinov2WithRegistersPreTrainedModel, Dinov2ForImageClassification):
    """`Dinov2ForImageClassification` with registers, which the classifier does not see."""

    backbone_class = Dinov2WithRegistersModel


class Dinov2WithRegistersBackbone(Dinov2WithRegistersPreTrainedModel, Dinov2Backbone):
    """`Dinov2Backbone` with registers, which the feature maps leave out."""
