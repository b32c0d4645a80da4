// Package tarsplit is the record of a layer's tar from which, with the files that
// were extracted of it, the exact bytes of the tar are put together again. It has
// what is not a file's content as it was (headers, padding, what follows the end of
// the archive), and for each content the file that has it, where in it, and a
// checksum, by which a damaged file is told from its neighbours.
//
// A record is a line of JSON with the version of its layout, then a zstd frame of
// operations: a byte that says which, and its operands. Numbers are unsigned varints,
// as in encoding/binary.
//
//	1  length, bytes                            bytes of the tar
//	2  path, generation, offset, length, sum    bytes of a file; a path is length and bytes,
//	                                            length 0 is that of before
//	0  length                                   the end: the length of the tar
//
// The generation counts the files that lay at the path before and that a later entry
// of the archive replaced. A sparse file has an operation for each piece that the
// archive has of it; whatever lies between them is zero. One that is all hole has one
// of no length.
package tarsplit

import (
	"fmt"
	"hash/crc32"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// ErrDamaged says that a record cannot be understood.
var ErrDamaged = fmt.Errorf("%w record", errdefs.ErrUnverified)

// Extent is a piece of a file, which is a piece of the tar.
type Extent struct {
	// Path is that of the file below the tree's root, cleaned.
	Path string
	// Generation is the number of files at Path that were replaced before this one.
	Generation uint64
	// Offset and Length are in bytes of the file.
	Offset, Length int64
	// Sum is the CRC-32C of the piece: see Checksum.
	Sum uint32
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum adds bytes to the checksum of what came before them, 0 at the beginning.
func Checksum(sum uint32, p []byte) uint32 { return crc32.Update(sum, castagnoli, p) }

const (
	opEnd    = 0
	opRaw    = 1
	opExtent = 2

	// maxRaw and maxPath bound what a reader allocates.
	maxRaw  = 64 << 10
	maxPath = 64 << 10
	// window is enough: a header resembles those just before it.
	window = 256 << 10
)
