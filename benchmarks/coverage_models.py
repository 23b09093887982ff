# ruff: noqa: E501  (configurations read best as tables)
"""The models of ``benchmarks/coverage.py``: every one small, with random weights, built without a download.

:func:`catalogue` names them and how each is built; the libraries are imported only when a model is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Builder = Callable[[], nn.Module]


def catalogue() -> dict[str, Builder]:
    """Every model by ``library/name``, in the order of the table."""
    return {
        **_smp(), **_diffusers(), **_timm(), **_transformers(), **_torchvision(), **_generators(), **_monai(), **_spandrel()
    }  # fmt: skip


def _smp() -> dict[str, Builder]:
    def build(architecture: str, encoder: str) -> nn.Module:
        import segmentation_models_pytorch as smp

        return getattr(smp, architecture)(encoder, encoder_weights=None, classes=2)

    names = [
        "Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "PAN", "UPerNet", "Segformer",
    ]  # fmt: skip
    models = {
        f"smp/{name} {encoder}": partial(build, name, encoder)
        for name in names
        for encoder in ("resnet18", "mobilenet_v2")
    }
    for encoder in ("tu-vit_tiny_patch16_224", "tu-deit_tiny_patch16_224"):
        models[f"smp/DPT {encoder[3:]}"] = partial(build, "DPT", encoder)

    def scse() -> nn.Module:
        import segmentation_models_pytorch as smp

        return smp.Unet("resnet18", encoder_weights=None, decoder_attention_type="scse", classes=2)

    def bilinear() -> nn.Module:
        import segmentation_models_pytorch as smp

        return smp.Unet("resnet18", encoder_weights=None, decoder_interpolation="bilinear", classes=2)

    models["smp/Unet resnet18 scse"] = scse
    models["smp/Unet resnet18 bilinear"] = bilinear
    return models


def _diffusers() -> dict[str, Builder]:
    def build(name: str, **config: Any) -> nn.Module:
        import diffusers

        return getattr(diffusers, name)(**config)

    down, up = ("DownEncoderBlock2D",) * 3, ("UpDecoderBlock2D",) * 3
    vae = {
        "block_out_channels": (16, 32, 32), "down_block_types": down, "up_block_types": up, "norm_num_groups": 8,
        "layers_per_block": 1, "latent_channels": 4,
    }  # fmt: skip
    unet = {
        "block_out_channels": (16, 32, 32), "norm_num_groups": 8, "layers_per_block": 1, "sample_size": 16
    }  # fmt: skip
    tiny = {
        "encoder_block_out_channels": (16,) * 4, "decoder_block_out_channels": (16,) * 4, "num_encoder_blocks": (1, 1, 1, 1),
        "num_decoder_blocks": (1, 1, 1, 1),
    }  # fmt: skip
    dc = {
        "latent_channels": 8, "attention_head_dim": 8, "encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock",
        "encoder_block_out_channels": (16, 32, 32), "decoder_block_out_channels": (16, 32, 32),
        "encoder_layers_per_block": (1, 1, 1), "decoder_layers_per_block": (1, 1, 1), "encoder_qkv_multiscales": ((), (), ()),
        "decoder_qkv_multiscales": ((), (), ()), "downsample_block_type": "Conv",
    }  # fmt: skip
    consistency = {
        "encoder_block_out_channels": (16, 32), "encoder_down_block_types": down[:2], "encoder_norm_num_groups": 8,
        "encoder_layers_per_block": 1, "decoder_block_out_channels": (32, 32), "decoder_down_block_types": ("ResnetDownsampleBlock2D",) * 2,
        "decoder_up_block_types": ("ResnetUpsampleBlock2D",) * 2, "decoder_layers_per_block": 1, "decoder_norm_num_groups": 8,
    }  # fmt: skip
    cross = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 16, "attention_head_dim": 4,
    }  # fmt: skip
    plain = {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3}
    simple = {
        "down_block_types": ("ResnetDownsampleBlock2D",) * 3, "up_block_types": ("ResnetUpsampleBlock2D",) * 3
    }  # fmt: skip
    skip = {
        "down_block_types": ("SkipDownBlock2D",) * 3, "up_block_types": ("SkipUpBlock2D",) * 3,
    }  # fmt: skip
    asymmetric = {
        "down_block_types": down, "down_block_out_channels": (16, 32, 32), "up_block_types": up,
        "up_block_out_channels": (16, 32, 32), "norm_num_groups": 8,
    }  # fmt: skip
    temporal = {"block_out_channels": (32, 32), "down_block_types": down[:2], "layers_per_block": 1}
    named: dict[str, tuple[str, dict[str, Any]]] = {
        "AutoencoderKL": ("AutoencoderKL", vae),
        "AutoencoderTiny": ("AutoencoderTiny", tiny),
        "VQModel": ("VQModel", vae),
        "VQModel spatial": ("VQModel", {**vae, "block_out_channels": (32, 32, 32), "norm_type": "spatial"}),
        "AsymmetricAutoencoderKL": ("AsymmetricAutoencoderKL", asymmetric),
        "AutoencoderKLTemporalDecoder": ("AutoencoderKLTemporalDecoder", temporal),
        "AutoencoderDC": ("AutoencoderDC", {**dc, "upsample_block_type": "pixel_shuffle"}),
        "AutoencoderDC interpolate": ("AutoencoderDC", {**dc, "upsample_block_type": "interpolate"}),
        "ConsistencyDecoderVAE": ("ConsistencyDecoderVAE", consistency),
        "AutoencoderKLFlux2": ("AutoencoderKLFlux2", vae),
        "AutoencoderKLHunyuanImage": (
            "AutoencoderKLHunyuanImage",
            {
                "in_channels": 3, "out_channels": 3, "latent_channels": 8, "block_out_channels": (32, 32, 32), "layers_per_block": 1,
                "spatial_compression_ratio": 4, "sample_size": 32,
            },
        ),
        "AutoencoderKLKVAE": ("AutoencoderKLKVAE", {"channels": 32, "num_enc_blocks": 1, "num_dec_blocks": 1, "ch_mult": (1, 2)}),
        "UNet2DModel": ("UNet2DModel", {**unet, **plain}),
        "UNet2DModel resnet": ("UNet2DModel", {**unet, **plain, "upsample_type": "resnet", "downsample_type": "resnet"}),
        "UNet2DModel skip": ("UNet2DModel", {**unet, **skip, "norm_num_groups": 8}),
        "UNet2DConditionModel": ("UNet2DConditionModel", {**unet, **cross}),
        "UNet2DConditionModel resnet": (
            "UNet2DConditionModel",
            {**unet, **simple, "cross_attention_dim": 16, "attention_head_dim": 4, "mid_block_type": "UNetMidBlock2D"},
        ),
        "UVit2DModel": (
            "UVit2DModel",
            {
                "hidden_size": 32, "cond_embed_dim": 16, "micro_cond_encode_dim": 8, "micro_cond_embed_dim": 40, "encoder_hidden_size": 16,
                "vocab_size": 32, "codebook_size": 24, "in_channels": 16, "block_out_channels": 16, "num_res_blocks": 1, "block_num_heads": 2,
                "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "sample_size": 8, "downsample": True, "upsample": True,
            },
        ),
    }  # fmt: skip
    return {f"diffusers/{key}": partial(build, name, **config) for key, (name, config) in named.items()}


def _timm() -> dict[str, Builder]:
    def build(name: str) -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=5)

    return {f"timm/{name}": partial(build, name) for name in ("cpubone_nano", "lowformer_b0")}


def _transformers() -> dict[str, Builder]:
    def build(name: str, config: str, **settings: Any) -> nn.Module:
        import transformers

        return getattr(transformers, name)(getattr(transformers, config)(**settings))

    vit = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 64,
    }
    dino = {
        "model_type": "dinov2",
        **vit,
        "mlp_ratio": 2,
        "patch_size": 8,
        "out_indices": [1, 2, 3, 4],
        "reshape_hidden_states": False,
    }
    neck = {"neck_hidden_sizes": [16, 16, 16, 16], "fusion_hidden_size": 16}
    mask = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 32}
    prompt = {"hidden_size": 32, "image_size": 64, "patch_size": 8}
    sam = {
        "vision_config": {**vit, "patch_size": 8, "output_channels": 32, "global_attn_indexes": [1], "window_size": 4, "num_pos_feats": 16},
        "prompt_encoder_config": prompt, "mask_decoder_config": {**mask, "iou_head_hidden_dim": 32},
    }  # fmt: skip
    beit = {
        **vit,
        "patch_size": 16,
        "out_indices": [0, 1, 2, 3],
        "num_labels": 3,
        "pool_scales": [1, 2],
        "use_auxiliary_head": True,
    }
    text = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 64,
    }
    clipseg = {
        "text_config": {**text, "bos_token_id": 0, "eos_token_id": 3, "pad_token_id": 1}, "vision_config": {**vit, "patch_size": 16},
        "projection_dim": 32, "extract_layers": [1, 2, 3], "reduce_dim": 16, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32,
    }  # fmt: skip
    vitpose = {
        "backbone_config": {
            "model_type": "vitpose_backbone", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": [64, 48],
            "patch_size": [16, 16], "out_indices": [2],
        },
        "num_labels": 3, "use_simple_decoder": False,
    }  # fmt: skip
    resnet = {
        "model_type": "resnet",
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [16, 16, 16, 16],
        "embedding_size": 16,
    }
    sapiens = {**vit, "patch_size": 8, "num_key_value_heads": 2, "num_labels": 3}
    head = {"upsample_out_channels": [16, 8], "conv_out_channels": [8]}
    ocr = {
        "intraclass_block_config": {
            "reduce_channel": [1, 1, 0],
            "return_channel": [1, 1, 0],
            **{
                f"vertical_long_to_small_conv_{r}ratio": [[k, 1], 1, [k // 2, 0]]
                for r, k in (("long", 7), ("mid", 5), ("short", 3))
            },
            **{
                f"horizontal_small_to_long_conv_{r}ratio": [[1, k], 1, [0, k // 2]]
                for r, k in (("long", 7), ("mid", 5), ("short", 3))
            },
            **{
                f"symmetric_conv_long_{r}ratio": [[k, k], 1, [k // 2, k // 2]]
                for r, k in (("long", 7), ("mid", 5), ("short", 3))
            },
        },
        "intraclass_block_number": 4,
        "neck_out_channels": 32,
        "scale_factor_list": [1, 2, 4, 8],
        "mode": "large",
        "kernel_list": [3, 2, 2],
    }
    lw_detr = {
        "backbone_config": {
            "model_type": "lw_detr_vit",
            **vit,
            "patch_size": 16,
            "num_windows": 4,
            "window_block_indices": [0, 1],
            "out_indices": [1, 3],
            "cae_init_values": 0.1,
            "pretrain_image_size": 64,
        },
        "projector_scale_factors": [2.0, 0.5],
        "d_model": 32,
        "num_queries": 5,
        "decoder_layers": 1,
        "decoder_self_attention_heads": 2,
        "decoder_cross_attention_heads": 4,
        "decoder_ffn_dim": 32,
        "group_detr": 1,
        "hidden_expansion": 0.5,
    }
    eomt = {
        **vit,
        "patch_size": 8,
        "num_blocks": 1,
        "num_upscale_blocks": 2,
        "num_queries": 4,
        "mlp_ratio": 2,
    }
    named: dict[str, tuple[str, str, dict[str, Any]]] = {
        "Sam": ("SamModel", "SamConfig", sam),
        "SamHQ": ("SamHQModel", "SamHQConfig", {**sam, "mask_decoder_config": {**mask, "iou_head_hidden_dim": 32, "vit_dim": 32}}),
        "Sam2": (
            "Sam2Model", "Sam2Config",
            {
                "vision_config": {
                    "backbone_config": {
                        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "num_attention_heads": 1, "blocks_per_stage": [1, 2, 1, 1],
                        "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 2, 4, 8],
                        "window_positional_embedding_background_size": [4, 4], "global_attention_blocks": [2], "window_size_per_stage": [4, 2, 2, 2], "image_size": [64, 64],
                    },
                    "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 32, "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
                    "image_size": 64,
                },
                "prompt_encoder_config": {**prompt, "patch_size": 16}, "mask_decoder_config": {**mask, "iou_head_hidden_dim": 32},
            },
        ),
        "DPT depth": ("DPTForDepthEstimation", "DPTConfig", {**vit, **neck, "patch_size": 16, "backbone_out_indices": [0, 1, 2, 3]}),
        "DPT segmentation": (
            "DPTForSemanticSegmentation", "DPTConfig",
            {**vit, **neck, "patch_size": 16, "backbone_out_indices": [0, 1, 2, 3], "num_labels": 3},
        ),
        "DepthAnything": (
            "DepthAnythingForDepthEstimation", "DepthAnythingConfig", {"backbone_config": dino, **neck, "reassemble_hidden_size": 32, "patch_size": 8},
        ),
        "PromptDepthAnything": (
            "PromptDepthAnythingForDepthEstimation", "PromptDepthAnythingConfig",
            {"backbone_config": dino, **neck, "reassemble_hidden_size": 32, "patch_size": 8},
        ),
        "Beit": ("BeitForSemanticSegmentation", "BeitConfig", beit),
        "Data2VecVision": ("Data2VecVisionForSemanticSegmentation", "Data2VecVisionConfig", beit),
        "CLIPSeg": ("CLIPSegForImageSegmentation", "CLIPSegConfig", {**clipseg, "use_complex_transposed_convolution": True}),
        "CLIPSeg simple": ("CLIPSegForImageSegmentation", "CLIPSegConfig", {**clipseg, "use_complex_transposed_convolution": False}),
        "VitPose": ("VitPoseForPoseEstimation", "VitPoseConfig", vitpose),
        "VitPose simple": ("VitPoseForPoseEstimation", "VitPoseConfig", {**vitpose, "use_simple_decoder": True}),
        "ZoeDepth": (
            "ZoeDepthForDepthEstimation", "ZoeDepthConfig",
            {
                "backbone_config": {
                    "model_type": "beit", **vit, "patch_size": 8, "out_features": ["stage1", "stage2", "stage3", "stage4"],
                    "reshape_hidden_states": False, "use_relative_position_bias": False,
                },
                **neck, "backbone_hidden_size": 32, "bottleneck_features": 16, "num_relative_features": 8, "bin_embedding_dim": 16,
                "num_attractors": [4, 2, 2, 1],
            },
        ),
        "DepthPro": (
            "DepthProForDepthEstimation", "DepthProConfig",
            {
                "image_model_config": {**dino, "image_size": 16, "patch_size": 4}, "patch_model_config": {**dino, "image_size": 16, "patch_size": 4},
                "fov_model_config": {**dino, "image_size": 16, "patch_size": 4}, "patch_size": 16, "image_size": 64,
                "intermediate_hook_ids": [1, 0], "intermediate_feature_dims": [16, 16], "scaled_images_ratios": [0.25, 0.5, 1.0],
                "scaled_images_overlap_ratios": [0.0, 0.5, 0.25], "scaled_images_feature_dims": [16, 16, 16], "fusion_hidden_size": 16,
                "use_fov_model": False,
            },
        ),
        "Eomt": ("EomtForUniversalSegmentation", "EomtConfig", eomt),
        "EomtDinov3": ("EomtDinov3ForUniversalSegmentation", "EomtDinov3Config", {**eomt, "num_register_tokens": 1}),
        "Sapiens2": ("Sapiens2ForSemanticSegmentation", "Sapiens2Config", {**sapiens, "head_config": head}),
        "Sapiens2 shuffle": (
            "Sapiens2ForNormalEstimation", "Sapiens2Config", {**sapiens, "head_config": {**head, "use_pixel_shuffle": True, "upsample_kernel_size": 3}},
        ),
        "PPOCRV5 mobile": ("PPOCRV5MobileDetForObjectDetection", "PPOCRV5MobileDetConfig", {}),
        "PPOCRV5 server": ("PPOCRV5ServerDetForObjectDetection", "PPOCRV5ServerDetConfig", ocr),
        "LwDetr": ("LwDetrForObjectDetection", "LwDetrConfig", lw_detr),
        "Swin2SR": (
            "Swin2SRForImageSuperResolution", "Swin2SRConfig",
            {"image_size": 16, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "upscale": 2, "upsampler": "pixelshuffle"},
        ),
        "Swin2SR nearest+conv": (
            "Swin2SRForImageSuperResolution", "Swin2SRConfig",
            {"image_size": 16, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "upscale": 4, "upsampler": "nearest+conv"},
        ),
        "UperNet": (
            "UperNetForSemanticSegmentation", "UperNetConfig",
            {"backbone_config": {**resnet, "out_features": ["stage1", "stage2", "stage3", "stage4"]}, "hidden_size": 16, "num_labels": 3,
             "auxiliary_in_channels": 16, "auxiliary_channels": 8},
        ),
        "Segformer": (
            "SegformerForSemanticSegmentation", "SegformerConfig",
            {"depths": [1] * 4, "hidden_sizes": [8, 16, 16, 16], "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16, "num_labels": 3},
        ),
        "Mask2Former": ("Mask2FormerForUniversalSegmentation", "Mask2FormerConfig", {}),
    }  # fmt: skip
    return {f"transformers/{key}": partial(build, n, c, **s) for key, (n, c, s) in named.items()}


def _torchvision() -> dict[str, Builder]:
    def build(module: str, name: str, **settings: Any) -> nn.Module:
        import importlib

        models = importlib.import_module(f"torchvision.models.{module}")
        return getattr(models, name)(weights=None, weights_backbone=None, **settings)

    segmentation = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
    small = {
        "min_size": 64,
        "max_size": 96,
        "num_classes": 3,
        "rpn_post_nms_top_n_test": 20,
        "box_detections_per_img": 4,
    }
    return {
        **{
            f"torchvision/{name}": partial(build, "segmentation", name, num_classes=3)
            for name in segmentation
        },
        "torchvision/Mask R-CNN": partial(build, "detection", "maskrcnn_resnet50_fpn", **small),
        "torchvision/Keypoint R-CNN": partial(
            build, "detection", "keypointrcnn_resnet50_fpn", **{**small, "num_classes": 2}
        ),
    }


def _monai() -> dict[str, Builder]:
    def build(name: str, *args: Any, **settings: Any) -> nn.Module:
        import monai.networks.nets

        return getattr(monai.networks.nets, name)(*args, **settings)

    basic: dict[str, Any] = {"features": (8, 8, 16, 16, 32, 8)}
    vit = {"hidden_size": 32, "mlp_dim": 32, "num_heads": 2, "spatial_dims": 2}
    vae = {"channels": (8, 16), "attention_levels": (False, False), "norm_num_groups": 4}
    two = (2, 2)
    named: dict[str, Builder] = {
        "UNet": partial(build, "UNet", 2, 3, 2, (8, 16, 32), two),
        "UNet residual": partial(build, "UNet", 2, 3, 2, (8, 16, 32), two, num_res_units=2),
        "BasicUNet": partial(build, "BasicUNet", 2, 3, 2, **basic),
        "BasicUNet shuffle": partial(build, "BasicUNet", 2, 3, 2, **basic, upsample="pixelshuffle"),
        "BasicUNet nontrainable": partial(build, "BasicUNet", 2, 3, 2, **basic, upsample="nontrainable"),
        "BasicUNetPlusPlus": partial(build, "BasicUNetPlusPlus", 2, 3, 2, **basic),
        "AttentionUnet": partial(build, "AttentionUnet", 2, 3, 2, (8, 16, 32), two),
        "DynUNet": partial(build, "DynUNet", 2, 3, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[8, 16, 32]),
        "DynUNet deep": partial(
            build, "DynUNet", 2, 3, 2, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=[8, 16, 32, 32], res_block=True, deep_supervision=True,
        ),
        "SegResNet": partial(build, "SegResNet", 2, 8, 3, 2),
        "SegResNet deconv": partial(build, "SegResNet", 2, 8, 3, 2, upsample_mode="deconv"),
        "SegResNet shuffle": partial(build, "SegResNet", 2, 8, 3, 2, upsample_mode="pixelshuffle"),
        "SegResNetVAE": partial(build, "SegResNetVAE", (64, 64), spatial_dims=2, init_filters=8, in_channels=3, out_channels=2),
        "SegResNetDS": partial(build, "SegResNetDS", 2, 8, 3, 2),
        "SegResNetDS2": partial(build, "SegResNetDS2", 2, 8, 3, 2),
        "UNETR": partial(build, "UNETR", 3, 2, (64, 64), feature_size=8, **vit),
        "SwinUNETR": partial(build, "SwinUNETR", 3, 2, feature_size=12, spatial_dims=2),
        "FlexibleUNet": partial(build, "FlexibleUNet", 3, 2, "efficientnet-b0"),
        "FlexibleUNet deconv": partial(build, "FlexibleUNet", 3, 2, "efficientnet-b0", upsample="deconv"),
        "FlexibleUNet shuffle": partial(build, "FlexibleUNet", 3, 2, "efficientnet-b0", upsample="pixelshuffle"),
        "AutoEncoder": partial(build, "AutoEncoder", 2, 3, 2, (8, 16), two),
        "VarAutoEncoder": partial(build, "VarAutoEncoder", 2, (3, 32, 32), 3, 8, (8, 16), two),
        "Generator": partial(build, "Generator", (16,), (16, 4, 4), (16, 8, 3), (2, 2, 2)),
        "Quicknat": partial(build, "Quicknat", num_classes=2, num_channels=3, num_filters=8),
        "MedNeXt": partial(build, "MedNeXt", 2, 8, 3, 2),
        "AutoencoderKL": partial(build, "AutoencoderKL", 2, 3, 3, (1, 1), **vae),
        "AutoencoderKL deconv": partial(build, "AutoencoderKL", 2, 3, 3, (1, 1), **vae, use_convtranspose=True),
        "VQVAE": partial(
            build, "VQVAE", 2, 3, 3, channels=(8, 16), num_res_channels=(8, 16), num_res_layers=1, downsample_parameters=((2, 4, 1, 1),) * 2,
            upsample_parameters=((2, 4, 1, 1, 0),) * 2, num_embeddings=8, embedding_dim=4,
        ),
        "SPADENet": partial(build, "SPADENet", 2, 3, 3, 3, input_shape=[64, 64], channels=[8, 16, 16], z_dim=8, is_vae=False),
        "ViTAutoEnc": partial(build, "ViTAutoEnc", 3, (64, 64), 16, num_layers=2, deconv_chns=8, **vit),
        "RegUNet": partial(build, "RegUNet", 2, 3, 4, depth=2),
        "LocalNet": partial(build, "LocalNet", 2, 3, 4, extract_levels=(0, 1, 2)),
    }  # fmt: skip
    return {f"monai/{key}": builder for key, builder in named.items()}


def _spandrel() -> dict[str, Builder]:
    def build(family: str, name: str, **settings: Any) -> nn.Module:
        import importlib

        return getattr(importlib.import_module(f"spandrel.architectures.{family}"), name)(**settings)

    windows: dict[str, Any] = {
        "embed_dim": 12,
        "depths": (1, 1),
        "num_heads": (2, 2),
        "window_size": 8,
        "img_size": 64,
    }
    shuffled = {"upscale": 2, "upsampler": "pixelshuffle"}
    unet = {"in_nc": 3, "out_nc": 3, "nc": [8, 8, 16, 16], "nb": 1}
    blocks: dict[str, Any] = {"middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1], "width": 8}
    attention: dict[str, Any] = {"embed_dim": 16, "depth": [1, 1], "num_heads": [2, 2]}
    esrgan = {"num_filters": 16, "num_blocks": 1}
    named: dict[str, tuple[str, dict[str, Any]]] = {
        "ATD": ("ATD", {**windows, **shuffled, "num_tokens": 8}),
        "CRAFT": ("CRAFT", {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)}),
        "Compact": ("Compact", {"num_feat": 16, "num_conv": 2, "upscale": 2}),
        "DAT": ("DAT", attention),
        "DCTLSA": ("DCTLSA", {}),
        "DITN": ("DITN", {}),
        "DRCT": ("DRCT", {**windows, **shuffled}),
        "DRUNet": ("DRUNet", unet),
        "DRUNet upconv": ("DRUNet", {**unet, "upsample_mode": "upconv"}),
        "DRUNet shuffle": ("DRUNet", {**unet, "upsample_mode": "pixelshuffle"}),
        "ESRGAN x2": ("ESRGAN", {**esrgan, "scale": 2}),
        "ESRGAN x4": ("ESRGAN", {**esrgan, "scale": 4}),
        "ESRGAN shuffle": ("ESRGAN", {**esrgan, "scale": 4, "upsampler": "pixel_shuffle"}),
        "FBCNN": ("FBCNN", {"nc": [8, 8, 16, 512], "nb": 1}),
        "FDAT": ("FDAT", {"embed_dim": 16, "num_groups": 1, "depth_per_group": 1, "num_heads": 2}),
        "FFTformer": ("FFTformer", {"dim": 8, "num_blocks": [1, 1, 1]}),
        "GRL": ("GRL", {"embed_dim": 12, "depths": [1, 1], "num_heads_window": [2, 2], "num_heads_stripe": [2, 2], **shuffled}),
        "HAT": ("HAT", {**windows, **shuffled, "compress_ratio": 3, "squeeze_factor": 4}),
        "HVICIDNet": ("HVICIDNet", {}),
        "KBNet_s": ("KBNet", blocks),
        "MixDehazeNet": ("MixDehazeNet", {"embed_dims": [8] * 5, "depths": [1] * 5}),
        "MoESR": ("MoESR", {"n_blocks": 1, "dim": 16}),
        "MoSR": ("MoSR", {"n_block": 2, "dim": 16}),
        "MoSR shuffle": ("MoSR", {"n_block": 2, "dim": 16, "upsampler": "ps"}),
        "NAFNet": ("NAFNet", blocks),
        "OmniSR": ("OmniSR", {}),
        "PLKSR": ("PLKSR", {"dim": 16, "n_blocks": 2}),
        "RealPLKSR": ("PLKSR", {"dim": 16, "n_blocks": 2}),
        "RCAN": ("RCAN", {"n_resgroups": 1, "n_resblocks": 1, "n_feats": 16}),
        "RGT": ("RGT", attention),
        "UpCunet2x": ("RealCUGAN", {}),
        "UpCunet2x_fast": ("RealCUGAN", {}),
        "UpCunet3x": ("RealCUGAN", {}),
        "UpCunet4x": ("RealCUGAN", {}),
        "RetinexFormer": ("RetinexFormer", {"n_feat": 8, "stage": 1, "num_blocks": [1, 1, 1]}),
        "SAFMN": ("SAFMN", {"dim": 16, "n_blocks": 2}),
        "SAFMNBCIE": ("SAFMNBCIE", {"dim": 16, "n_blocks": 1, "num_layers": 1}),
        "SPAN": ("SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 16}),
        "SwiftSRGAN": ("SwiftSRGAN", {"num_channels": 16, "num_blocks": 1}),
        "SwinIR": ("SwinIR", {**windows, **shuffled}),
        "SwinIR nearest": ("SwinIR", {**windows, "upscale": 4, "upsampler": "nearest+conv"}),
        "Swin2SR": ("Swin2SR", {**windows, "upscale": 2, "upsampler": "pixelshuffledirect"}),
        "Uformer": ("Uformer", {"img_size": 64, "embed_dim": 8, "depths": [1] * 9, "num_heads": [1] * 9}),
    }  # fmt: skip
    classes = {"KBNet_s", "RealPLKSR", "UpCunet2x", "UpCunet2x_fast", "UpCunet3x", "UpCunet4x"}
    return {
        f"spandrel/{key}": partial(build, family, key if key in classes else family, **settings)
        for key, (family, settings) in named.items()
    }


def _generators() -> dict[str, Builder]:
    return {
        "generator/DCGAN": dcgan,
        "generator/pix2pix U-Net": UnetGenerator,
        "generator/pix2pix ResNet": resnet_generator,
        "generator/CycleGAN resize": partial(resnet_generator, resize=True),
        "generator/spectral DCGAN": partial(dcgan, spectral=True),
        "generator/FSRCNN x3": partial(fsrcnn, 3),
        "generator/ESPCN x3": partial(espcn, 3),
        "generator/functional": FunctionalDecoder,
        "generator/StyleGAN2-like": StyleGenerator,
    }


def dcgan(spectral: bool = False) -> nn.Sequential:
    """DCGAN's generator (Radford et al., arXiv 1511.06434), narrow."""
    wrap = nn.utils.spectral_norm if spectral else lambda m: m
    layers: list[nn.Module] = [
        wrap(nn.ConvTranspose2d(16, 32, 4, 1, 0, bias=False)),
        nn.BatchNorm2d(32),
        nn.ReLU(True),
    ]
    for width in (32, 16):
        layers += [
            wrap(nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False)), nn.BatchNorm2d(width // 2), nn.ReLU(True)
        ]  # fmt: skip
    return nn.Sequential(*layers, nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False), nn.Tanh())


class UnetGenerator(nn.Module):
    """pix2pix's generator (Isola et al., arXiv 1611.07004): every level down k4 s2, up ConvTranspose2d k4 s2
    over [x, skip]."""

    def __init__(self, widths: tuple[int, ...] = (8, 16, 16, 16)) -> None:
        super().__init__()
        inputs = (3, *widths[:-1])
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in zip(inputs, widths, strict=True))
        outputs = (3, *widths[:-1])
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(b if b is widths[-1] and i == len(widths) - 1 else 2 * b, a, 4, 2, 1)
            for i, (a, b) in enumerate(zip(outputs, widths, strict=True))
        )
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to the same."""
        skips = []
        for layer in self.down:
            x = F.leaky_relu(layer(x), 0.2)
            skips.append(x)
        x = skips.pop()
        for i in reversed(range(len(self.up))):
            x = self.up[i](F.relu(x))
            if i:
                x = torch.cat([self.drop(x), skips.pop()], 1)
        return torch.tanh(x)


def resnet_generator(resize: bool = False) -> nn.Sequential:
    """CycleGAN's generator: two k3 s2 p1 op1 transposed convolutions, or, as its issue tracker advises, a
    resize and a convolution."""

    def block(a: int, b: int) -> list[nn.Module]:
        if resize:
            return [
                nn.Upsample(scale_factor=2),
                nn.Conv2d(a, b, 3, padding=1),
                nn.InstanceNorm2d(b),
                nn.ReLU(True),
            ]
        return [nn.ConvTranspose2d(a, b, 3, 2, 1, output_padding=1), nn.InstanceNorm2d(b), nn.ReLU(True)]

    return nn.Sequential(
        nn.ReflectionPad2d(3), nn.Conv2d(3, 8, 7), nn.InstanceNorm2d(8), nn.ReLU(True),
        nn.Conv2d(8, 16, 3, 2, 1), nn.InstanceNorm2d(16), nn.ReLU(True), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(True),
        *block(32, 16), *block(16, 8), nn.ReflectionPad2d(3), nn.Conv2d(8, 3, 7), nn.Tanh(),
    )  # fmt: skip


def fsrcnn(scale: int) -> nn.Sequential:
    """FSRCNN (Dong et al., arXiv 1608.00367): one 9x9 transposed convolution with the whole scale for its
    stride."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.PReLU(16), nn.Conv2d(16, 8, 1), nn.PReLU(8), nn.Conv2d(8, 16, 3, padding=1), nn.PReLU(16),
        nn.ConvTranspose2d(16, 1, 9, scale, 4, output_padding=scale - 1),
    )  # fmt: skip


def espcn(scale: int) -> nn.Sequential:
    """ESPCN (Shi et al., arXiv 1609.05158): a convolution and a pixel shuffle."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.Tanh(), nn.Conv2d(16, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, scale**2, 3, padding=1),
        nn.PixelShuffle(scale), nn.Sigmoid(),
    )  # fmt: skip


class FunctionalDecoder(nn.Module):
    """Two calls of F.conv_transpose2d with parameters, one in a submodule."""

    class Up(nn.Module):
        """One functional transposed convolution."""

        def __init__(self, a: int, b: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(a, b, 4, 4) * 0.1)
            self.bias = nn.Parameter(torch.randn(b) * 0.1)

        def forward(self, x: Tensor) -> Tensor:
            """(N, a, H, W) to (N, b, 2H, 2W)."""
            return F.conv_transpose2d(x, self.weight, self.bias, stride=2, padding=1)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.up = self.Up(8, 8)
        self.kernel = nn.Parameter(torch.randn(8, 3, 2, 2) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 3, 4H, 4W)."""
        x = F.relu(self.up(self.first(x)))
        return F.conv_transpose2d(x, self.kernel, stride=2)


class StyleGenerator(nn.Module):
    """The up-sampling of StyleGAN2 (Karras et al., arXiv 1912.04958): kernels modulated for each sample."""

    def __init__(self, width: int = 8, latent_dim: int = 16) -> None:
        super().__init__()
        self.latent_dim, self.width = latent_dim, width
        self.constant = nn.Parameter(torch.randn(1, width, 4, 4))
        self.style = nn.Linear(latent_dim, width)
        self.weight = nn.Parameter(torch.randn(width, width, 3, 3) * 0.1)
        self.rgb = nn.Conv2d(width, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        """(N, latent_dim) to (N, 3, 9, 9)."""
        n, c = z.shape[0], self.width
        x = self.constant.expand(n, -1, -1, -1).reshape(1, n * c, 4, 4)
        weight = self.weight[None] * self.style(z)[:, :, None, None, None]
        weight = weight * torch.rsqrt(weight.square().sum((1, 3, 4), keepdim=True) + 1e-8)
        x = F.conv_transpose2d(x, weight.reshape(n * c, c, 3, 3), stride=2, groups=n)
        return self.rgb(x.reshape(n, c, x.shape[-2], x.shape[-1]))
