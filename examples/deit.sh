#!/bin/sh
# DeiT-S on ImageNet, started from published weights and distilled from a larger network in the same run.
# Layer norms tie the residual stream; their repaired form keeps the removal exact.
# $1: the directory with train/ and val/.
set -e
accelerate launch -m edp_fx compress deit_small_patch16_224 --pretrained --data "folder:$1" --macs 0.5 --epochs 100 \
  --lr 5e-4 --batch-size 1024 --mixed-precision bf16 --workers 8 \
  --teacher regnety_160.deit_in1k --no-baseline --out deit-small
