#!/bin/sh
# Remove from a folder of Python packages what no run opens: headers, tests, test programs.
#   trim_packages.sh FOLDER
set -eu
cd "$1"
rm -rf bin torch/include torch/share torch/test pandas/tests pyarrow/include pyarrow/tests
find torch/bin -type f ! -name torch_shm_manager -delete
find numpy -depth -type d -name tests -exec rm -rf {} +
