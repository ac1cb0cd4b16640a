#!/bin/sh
# ResNet-50 and MobileNetV2 on ImageNet, from scratch, on every GPU of the machine. $1: resnet50 or mobilenetv2_100;
# $2: the directory with train/ and val/. accelerate's own options (machines, ranks) go before -m.
set -e
case "$1" in
  resnet50)        recipe="--macs 0.45 --epochs 100 --lr 0.8 --set weight_decay=5e-5" ;;
  mobilenetv2_100) recipe="--macs 0.65 --epochs 200 --lr 0.4 --set weight_decay=2e-5" ;;
  *) echo "usage: $0 resnet50|mobilenetv2_100 IMAGENET" >&2; exit 2 ;;
esac
accelerate launch -m edp_fx compress "$1" --data "folder:$2" $recipe --set optimizer=sgd --batch-size 1024 \
  --mixed-precision bf16 --workers 8 --set ema=0.9999 --no-baseline --out "imagenet-$1"
