# Pipelines on a machine without a GPU: docker run --rm -v "$PWD:/data" yopo run pipeline.yaml
FROM python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY . /src
RUN pip install --no-cache-dir -c /src/constraints.txt --index-url "$TORCH_INDEX" torch \
 && pip install --no-cache-dir -c /src/constraints.txt "/src[heal,tasks,onnx-cpu]"
ENV HF_HOME=/data/.huggingface
WORKDIR /data
ENTRYPOINT ["yopo"]
