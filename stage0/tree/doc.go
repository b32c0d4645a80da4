// Package tree is the store of extracted layers: one directory a layer, keyed
// by the layer's diff ID, in the form that overlayfs stacks.
//
//	<dir>/trees/<12 characters>/rootfs/    the layer's files
//	<dir>/trees/<12 characters>/meta.json  what the layer is: see Meta
//	<dir>/trees/<12 characters>/layer.tarsplit  how to put its tar together again: see Store.Rebuild
//	<dir>/trees/<12 characters>/replaced/  files that are in the tar and not in the layer
//	<dir>/tmp/tree-…                       work in progress, each entry under a flock
//
// A layer is extracted in one pass while its blob streams in: the blob is
// hashed, decompressed, hashed again and written, each in a goroutine of its
// own over bounded buffers; while it is the only one, four more finish its small
// files. Layers know nothing of each other, so they are
// extracted in any order and in parallel. What a layer alone cannot know, the
// attributes of directories that it only implies, is put right by a fix-up
// tree (see Store.Fixup) that lies on top of the stack.
//
// Whiteouts are always kept in overlay form: a character device 0:0 for a
// removed name, the attribute trusted.overlay.opaque=y for a directory that
// hides what lies below it. A layer is resolved within itself, as if its root
// were the root of the file system: no entry reaches outside, whatever its
// name, and a directory in a layer replaces a symbolic link in a lower one.
//
// The archive of an appc image (ACI) is extracted in the same way, from below its
// rootfs/: see Store.ExtractACI. It has no whiteouts, whatever its files are called.
//
// A tree that is present under trees/ is complete and synced. Nothing in this
// package logs. Extraction needs root, since owners, devices and file
// capabilities are kept.
package tree
