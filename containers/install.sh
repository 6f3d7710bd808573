#!/bin/sh
# install.sh WORD...: `pip install WORD...`, less what nothing reads at run time. It is one RUN of
# the Dockerfile each time, because what an earlier layer holds a later one can only hide.
set -eu
pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore "$@"
cd "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
# What is there to compile against torch and to test it. Its libraries stay, CUDA's among them.
rm -rf torch/include torch/share torch/test torch/lib/*test*
find torch/bin -type f ! -name torch_shm_manager -delete
find . -type d \( -name test -o -name tests -o -name benchmarks \) -not -path '*/torch/*' \
  -prune -exec rm -rf {} +
