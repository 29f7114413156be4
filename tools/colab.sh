#!/bin/sh
# What the first cell of a notebook installs in Google Colab, which has most of requirements.txt in versions of its own.
# Those stay: another torch would not fit Colab's torchvision, and what its kernel holds already would need a restart.
# If pip names conflicts here, they are of packages that come with Colab and that the notebooks don't use.
cd "$(dirname "$0")" || exit
grep -E '^(transformers|peft|bitsandbytes|accelerate)==' ../requirements.txt | pip install --quiet -r /dev/stdin
pip uninstall -qq --yes torchao  # nothing here needs it, and peft refuses to train beside one that is too old for it
