"""Rings, under the names that 3FS gave them."""

from fs3.client.adapters.hf3fs import (
    IorPriority,
    deregister_fd,
    extract_mount_point,
    force_fsync,
    hardlink,
    ioring,
    iovec,
    make_ioring,
    make_iovec,
    punch_hole,
    read_file,
    register_fd,
)

__all__ = [
    "IorPriority",
    "deregister_fd",
    "extract_mount_point",
    "force_fsync",
    "hardlink",
    "ioring",
    "iovec",
    "make_ioring",
    "make_iovec",
    "punch_hole",
    "read_file",
    "register_fd",
]
