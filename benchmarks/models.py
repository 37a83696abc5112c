"""The models of the long sweep, as specifications that `dyncompile.zoo.load` reads."""

from __future__ import annotations

_LAYERS = "num_hidden_layers=2"
_WIDTH = "hidden_size=256&intermediate_size=512&vocab_size=1000"
_ENCODER = f"{_WIDTH}&{_LAYERS}&num_attention_heads=4"
_DECODER = f"{_WIDTH}&num_attention_heads=8"
_GROUPED = f"{_DECODER}&num_key_value_heads=2"  # grouped queries: four query heads share a key-value head
_BOTH = (
    "encoder_layers=2&decoder_layers=2&d_model=128&encoder_ffn_dim=256&decoder_ffn_dim=256&vocab_size=1000"
)
_VIT = f"{_LAYERS}&hidden_size=192&num_attention_heads=3&intermediate_size=768"
_STAGES = "depths=[1,1,2,1]"
_WIDTHS = "hidden_sizes=[32,64,96,128]"

REFERENCE: dict[str, int] = {
    "torchvision:resnet18": 12,
    "torchvision:resnext50_32x4d": 53,
    "torchvision:wide_resnet50_2": 37,
    "torchvision:vgg11_bn": 10,
    "torchvision:densenet121": 120,
    "torchvision:mobilenet_v2": 25,
    "torchvision:mobilenet_v3_small": 27,
    "torchvision:efficientnet_b0": 40,
    "torchvision:regnet_y_400mf": 69,
    "torchvision:shufflenet_v2_x1_0": 25,
    "torchvision:squeezenet1_0": 25,
    "torchvision:mnasnet1_0": 25,
    "torchvision:googlenet": 57,
    "torchvision:inception_v3": 94,
    "torchvision:convnext_tiny": 22,
    "torchvision:vit_b_16": 37,
    "torchvision:swin_t": 40,
    "torchvision:swin_v2_t": 64,
    "torchvision:maxvit_t": 117,
    "hf:BertForSequenceClassification": 50,
    "hf:GPT2LMHeadModel": 49,
    "hf:ViTForImageClassification": 49,
    f"hf:LlamaForCausalLM?{_GROUPED}&num_hidden_layers=4": 19,
    "timm:resnet50": 37,
    "timm:vit_tiny_patch16_224": 37,
    "timm:deit_tiny_distilled_patch16_224": 37,
    "timm:swin_tiny_patch4_window7_224": 40,
    "timm:convnext_atto": 16,
    "timm:convnextv2_atto": 16,
    "timm:mixer_s32_224": 17,
    "timm:efficientnet_b0": 40,
    "timm:mobilenetv3_small_100": 27,
    "timm:dpn68": 97,
    "timm:res2net50_26w_4s": 93,
    "timm:skresnet18": 24,
    "timm:resnest14d": 23,
    "timm:eca_nfnet_l0": 56,
    "timm:nfnet_l0": 68,
    "timm:beit_base_patch16_224": 37,
    "timm:cait_xxs24_224": 105,
    "timm:xcit_nano_12_p16_224": 48,
    "timm:pvt_v2_b0": 32,
    "timm:mobilevit_xxs": 52,
    "timm:levit_128s": 50,
    "timm:efficientformer_l1": 23,
    "timm:efficientformerv2_s0": 42,
    "timm:poolformer_s12": 16,
    "timm:coat_tiny": 32,
    "timm:maxvit_nano_rw_256": 75,
    "timm:eva02_tiny_patch14_224": 27,
    "timm:volo_d1_224": 65,
    "timm:edgenext_xx_small": 25,
    "timm:hiera_tiny_224": 39,
    "timm:repvit_m0_9": 41,
    "timm:fastvit_t8": 16,
    "timm:ghostnet_100": 31,
    "timm:densenet121": 120,
}
"""Specification -> number of elastic dims that the prototype found (make_fx graphs, batch of 3)."""

VISION: tuple[str, ...] = (
    f"hf:ViTForImageClassification?{_VIT}",
    f"hf:DeiTForImageClassification?{_VIT}",
    f"hf:BeitForImageClassification?{_VIT}",
    "hf:Dinov2ForImageClassification?num_hidden_layers=2&hidden_size=192&num_attention_heads=3",
    f"hf:CLIPVisionModel?{_VIT}",
    "hf:SiglipForImageClassification?vision_config.num_hidden_layers=2&vision_config.hidden_size=192"
    "&vision_config.num_attention_heads=3&vision_config.intermediate_size=768",
    "hf:SwinForImageClassification?depths=[2,2]&num_heads=[3,6]",
    "hf:Swinv2ForImageClassification?depths=[2,2]&num_heads=[3,6]&image_size=256&window_size=8",
    f"hf:HieraForImageClassification?{_STAGES}",
    f"hf:PvtV2ForImageClassification?{_STAGES}",
    f"hf:SegformerForImageClassification?{_STAGES}",
    f"hf:FocalNetForImageClassification?{_STAGES}",
    "hf:LevitForImageClassification?depths=[2,2,2]",
    "hf:CvtForImageClassification",
    "hf:MobileViTForImageClassification",
    f"hf:ConvNextForImageClassification?{_STAGES}&{_WIDTHS}",
    f"hf:ConvNextV2ForImageClassification?{_STAGES}&{_WIDTHS}",
    f"hf:ResNetForImageClassification?{_STAGES}",
    f"hf:RegNetForImageClassification?{_STAGES}&{_WIDTHS}&groups_width=16",
    f"hf:BitForImageClassification?{_STAGES}",
    "hf:EfficientNetForImageClassification?width_coefficient=0.5&depth_coefficient=0.5&hidden_dim=640",
    "hf:MobileNetV2ForImageClassification",
    "hf:PoolFormerForImageClassification",
)

TEXT_ENCODERS: tuple[str, ...] = (
    f"hf:BertForSequenceClassification?{_ENCODER}",
    f"hf:RobertaForSequenceClassification?{_ENCODER}",
    f"hf:DistilBertForSequenceClassification?{_LAYERS}&hidden_size=256&num_attention_heads=4&hidden_dim=512"
    "&vocab_size=1000",
    f"hf:AlbertForSequenceClassification?{_ENCODER}",
    f"hf:ElectraForSequenceClassification?{_ENCODER}",
    f"hf:DebertaV2ForSequenceClassification?{_ENCODER}",
    f"hf:MPNetForSequenceClassification?{_ENCODER}",
    f"hf:ModernBertForSequenceClassification?{_WIDTH}&num_hidden_layers=3&num_attention_heads=4"
    "&pad_token_id=0&bos_token_id=1&eos_token_id=2&cls_token_id=1&sep_token_id=2",
)

DECODERS: tuple[str, ...] = (
    f"hf:GPT2LMHeadModel?{_LAYERS}&n_embd=256&n_head=8&vocab_size=1000",
    "hf:GPTNeoForCausalLM?hidden_size=256&num_layers=2&attention_types=[[['global','local'],1]]"
    "&num_heads=8&vocab_size=1000",
    f"hf:GPTNeoXForCausalLM?{_DECODER}&{_LAYERS}",
    f"hf:OPTForCausalLM?{_LAYERS}&vocab_size=1000&hidden_size=256&num_attention_heads=8&ffn_dim=512"
    "&word_embed_proj_dim=256",
    "hf:BloomForCausalLM?hidden_size=256&n_layer=2&n_head=8&vocab_size=1000",
    f"hf:FalconForCausalLM?hidden_size=256&{_LAYERS}&num_attention_heads=8&vocab_size=1000",
    f"hf:PhiForCausalLM?{_DECODER}&{_LAYERS}",
    f"hf:Phi3ForCausalLM?{_GROUPED}&{_LAYERS}&pad_token_id=0",
    f"hf:LlamaForCausalLM?{_GROUPED}&{_LAYERS}",
    f"hf:MistralForCausalLM?{_GROUPED}&{_LAYERS}",
    f"hf:Qwen2ForCausalLM?{_GROUPED}&{_LAYERS}",
    f"hf:Qwen3ForCausalLM?{_GROUPED}&{_LAYERS}&head_dim=32",
    f"hf:Gemma2ForCausalLM?{_GROUPED}&{_LAYERS}&head_dim=32",
    f"hf:Olmo2ForCausalLM?{_GROUPED}&{_LAYERS}&pad_token_id=0",
    f"hf:StableLmForCausalLM?{_GROUPED}&{_LAYERS}",
    f"hf:CohereForCausalLM?{_GROUPED}&{_LAYERS}",
    f"hf:GraniteForCausalLM?{_GROUPED}&{_LAYERS}",
)

ENCODER_DECODERS: tuple[str, ...] = (
    "hf:T5ForConditionalGeneration?d_model=128&d_kv=32&d_ff=256&num_layers=2&num_heads=4&vocab_size=1000",
    f"hf:BartForConditionalGeneration?{_BOTH}",
    f"hf:MarianMTModel?{_BOTH}&decoder_vocab_size=1000&pad_token_id=0",
)

SOUND: tuple[str, ...] = (
    # Layer drop and masking in time draw numbers that steer Python branches: no train graph holds them.
    f"hf:Wav2Vec2ForSequenceClassification?{_LAYERS}&layerdrop=0.0&apply_spec_augment=False",
    f"hf:WhisperForConditionalGeneration?{_BOTH}&max_source_positions=100&encoder_attention_heads=4"
    "&decoder_attention_heads=4&pad_token_id=0",
    f"hf:ASTForAudioClassification?{_LAYERS}&hidden_size=192&num_attention_heads=3&intermediate_size=384"
    "&max_length=128",
)

HF_CLASSES: tuple[str, ...] = VISION + TEXT_ENCODERS + DECODERS + ENCODER_DECODERS + SOUND
"""Hugging Face classes, shrunk until they load in a second. With torch 2.13 and transformers 5.23 all of them
export in eval and in train mode, with equal outputs at another batch size."""
