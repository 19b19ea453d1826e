"""Records: many samples in one file, any of which is read at once.

format     what is in a record file, byte by byte (docs/formats.md)
storage    where it is: on fs3 or in a local directory
writer     making one
reader     reading many records in one batch
packing    making one from files, lines, tars
shuffle    the order of an epoch, without a list of it
"""
