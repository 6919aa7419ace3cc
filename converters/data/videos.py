"""Videos without torchvision: frames through a family's PIL image processor, in the place of its video processor."""

from typing import Any

SAMPLING = ("do_sample_frames", "num_frames", "fps")
NAME = "pixel_values_videos"


class Frames:
    """A video processor of transformers in all that processors ask of one. `pictures` is the PIL image processor with its settings.

    A video is a list of PIL frames or an array `[frames, height, width, channels]`; all its frames are used. Raises ValueError where
    frames are to be chosen, which needs a video's metadata.
    """

    model_input_names: tuple[str, ...] = (NAME,)
    num_frames = fps = None  # asked for by chat templates, also where there is no video

    def __init__(self, pictures: Any) -> None:
        self.pictures = pictures

    def __call__(self, videos: Any, return_tensors: str = "pt", return_metadata: bool = False, **options: Any) -> Any:
        from transformers import BatchFeature
        from transformers.video_utils import make_batched_metadata, make_batched_videos

        if asked := [name for name in SAMPLING if options.get(name)]:
            raise ValueError(f"{', '.join(asked)}: frames are not chosen without torchvision. Pass those that the model is to see.")
        batch = make_batched_videos(videos)
        data = self.encoded(batch)
        if return_metadata:
            data["video_metadata"] = make_batched_metadata(batch, options.get("video_metadata"))
        return BatchFeature(data, tensor_type=return_tensors, skip_tensor_conversion=["video_metadata"])

    def encoded(self, videos: list[Any]) -> dict[str, Any]:
        """Every frame is a picture of one tile: `[videos, frames, channels, height, width]`; of one length."""
        import numpy as np

        if len(lengths := {len(video) for video in videos}) > 1:
            raise ValueError(f"The videos of a call have {', '.join(map(str, sorted(lengths)))} frames. Pass videos of one length.")
        return {NAME: np.stack([self.pixels(list(video)) for video in videos])}

    def pixels(self, frames: list[Any]) -> Any:
        """`[frames, channels, height, width]`"""
        return self.pictures(frames, crop_to_patches=False, return_tensors="np")["pixel_values"]


class WholeFrames(Frames):
    """LLaVA-OneVision's: a frame is resized to a square, as the whole picture is that comes before its tiles."""

    def pixels(self, frames: list[Any]) -> Any:
        size = self.pictures.size
        whole = [[size["height"] or size["shortest_edge"], size["width"] or size["shortest_edge"]]]
        return self.pictures(frames, image_grid_pinpoints=whole, return_tensors="np")["pixel_values"][:, 0]


class NoFrames(Frames):
    """SmolVLM's, whose frames are sampled and written about."""

    def encoded(self, videos: list[Any]) -> dict[str, Any]:
        raise ValueError("Videos of this model need torchvision.")


class PairedFrames(Frames):
    """Qwen2-VL's: `temporal_patch_size` frames make one patch, the last frame fills up; `[patches, values]` and each video's grid."""

    model_input_names = (NAME, "video_grid_thw")

    @property
    def merge_size(self) -> int:
        return int(self.pictures.merge_size)

    @property
    def temporal_patch_size(self) -> int:
        return int(self.pictures.temporal_patch_size)

    def encoded(self, videos: list[Any]) -> dict[str, Any]:
        import numpy as np

        patches, grids = zip(*(self._patches(video) for video in videos), strict=True)
        return {NAME: np.concatenate(patches), "video_grid_thw": np.array(grids)}

    def _patches(self, video: Any) -> tuple[Any, list[int]]:
        """The image processor repeats a picture over the temporal patch; taken alone, frames are put side by side in its place."""
        import numpy as np

        together = self.temporal_patch_size
        video = [*video, *[video[-1]] * (-len(video) % together)]
        alone = self.pictures(video, temporal_patch_size=1, return_tensors="np")
        _, rows, columns = alone["image_grid_thw"][0].tolist()
        area = self.pictures.patch_size**2
        frames = alone["pixel_values"].reshape(-1, together, rows * columns, alone["pixel_values"].shape[-1] // area, area)
        patches = np.moveaxis(frames, 1, 3)
        return patches.reshape(-1, patches.shape[2] * together * area), [len(frames), rows, columns]
