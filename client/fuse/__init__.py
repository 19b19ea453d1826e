"""The FUSE fronts: the kernel's protocol on one side, one ``FileSystem`` object on the other.

kernel_structs.py, kernel.py   the protocol's structs, and the codec over them; neither does I/O
mount.py                       mount and unmount
operations.py                  one handler per request: decode'd arguments in, reply out
front.py                       threads that read /dev/fuse, call a handler and write its reply
fusepy_front.py                the second front, on libfuse through mfusepy
"""
