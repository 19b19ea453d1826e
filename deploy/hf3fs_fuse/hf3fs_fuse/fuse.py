"""Where a path is mounted, under the name that 3FS gave it."""

from fs3.client.adapters.hf3fs import extract_mount_point as get_mount_point

__all__ = ["get_mount_point"]
