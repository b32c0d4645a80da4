package inflate

import (
	"errors"
	"sync"
)

// How many symbols the codes have (RFC 1951, sections 3.2.5 to 3.2.7).
const (
	maxLit  = 286
	maxDist = 30
	maxCode = 19
	maxBits = 15
)

// An entry of a table says what the next bits of the input are:
//
//	bits 0-5    how many bits to drop: the code and its extra bits
//	bits 6-7    kind: literals, special, or else a length or distance
//	bits 8-13   how long the code alone is; of literals how many they are; of the
//	            second level how many bits index it
//	bits 16-31  value: one or two literals, the base of a length or distance, or
//	            where the second level begins
const (
	dropMask    = 63
	literal     = 1 << 6
	special     = 1 << 7 // end of block, second level, or no code at all
	lengthShift = 8
	valueShift  = 16

	invalid    = special
	endOfBlock = special | 1<<14
	secondary  = special | 1<<15
)

// The bits that index the first level. More were slower.
const (
	litBits  = 11
	distBits = 8
)

// tableSize holds both levels of the largest code: 2^litBits entries, and less
// than half as many for the codes that are longer, whatever their lengths. It is
// a power of two so that an index can be masked instead of checked.
const tableSize = 4096

// table decodes one code.
type table struct {
	entries [tableSize]uint32
}

// kind is what the symbols of a code mean: entries without the code's length,
// and the bits that index the first level.
type kind struct {
	symbols []uint32
	bits    uint
}

var (
	litKind  = kind{litSymbols(), litBits}
	distKind = kind{distSymbols(), distBits}
	codeKind = kind{codeSymbols(), distBits}
)

// litSymbols are literals, the end of a block, and lengths (RFC 1951, section 3.2.5).
func litSymbols() []uint32 {
	symbols := make([]uint32, 0, 288)
	for b := range uint32(256) {
		symbols = append(symbols, literal|b<<valueShift)
	}
	symbols = append(symbols, endOfBlock)
	for i, base := uint32(0), uint32(3); i < 28; i++ {
		extra := (max(i, 4) - 4) / 4
		symbols = append(symbols, extra|base<<valueShift)
		base += 1 << extra
	}
	symbols = append(symbols, 258<<valueShift)
	return append(symbols, invalid, invalid) // 286 and 287 are in the fixed code alone
}

// distSymbols are distances (RFC 1951, section 3.2.5).
func distSymbols() []uint32 {
	symbols := make([]uint32, 0, 32)
	for i, base := uint32(0), uint32(1); i < maxDist; i++ {
		extra := (max(i, 2) - 2) / 2
		symbols = append(symbols, extra|base<<valueShift)
		base += 1 << extra
	}
	return append(symbols, invalid, invalid)
}

func codeSymbols() []uint32 {
	symbols := make([]uint32, maxCode)
	for i := range symbols {
		symbols[i] = uint32(i) << valueShift
	}
	return symbols
}

// fixedTables are the codes of RFC 1951, section 3.2.6.
var fixedTables = sync.OnceValues(func() (lit, dist *table) {
	var lengths [288]uint8
	for i := range lengths {
		switch {
		case i < 144:
			lengths[i] = 8
		case i < 256:
			lengths[i] = 9
		case i < 280:
			lengths[i] = 7
		default:
			lengths[i] = 8
		}
	}
	var fives [32]uint8
	for i := range fives {
		fives[i] = 5
	}
	lit, dist = new(table), new(table)
	if err := errors.Join(lit.build(lengths[:], litKind), dist.build(fives[:], distKind)); err != nil {
		panic(err) // they are complete
	}
	return lit, dist
})

var (
	errOversubscribed = errors.New("more codes than there can be")
	errIncomplete     = errors.New("codes are missing")
)

// build makes the table of the code with these lengths (RFC 1951, section 3.2.2).
// Like zlib it takes a code of one symbol of one bit, and one without any symbol,
// both of which are invalid only when they are used otherwise.
func (t *table) build(lengths []uint8, k kind) error {
	var count [maxBits + 1]int
	for _, l := range lengths {
		count[l]++
	}
	count[0] = 0
	longest, left := 0, 1
	var first [maxBits + 2]int
	for l := 1; l <= maxBits; l++ {
		if left = left<<1 - count[l]; left < 0 {
			return errOversubscribed
		}
		if count[l] > 0 {
			longest = l
		}
		first[l+1] = first[l] + count[l]
	}
	if longest == 0 || longest == 1 && count[1] == 1 {
		for i := range 1 << k.bits {
			t.entries[i] = invalid
		}
	} else if left > 0 {
		return errIncomplete
	}
	var sorted [288]uint16
	for symbol, l := range lengths {
		if l != 0 {
			sorted[first[l]] = uint16(symbol)
			first[l]++
		}
	}
	t.lay(&count, sorted[:], k)
	if k.bits == litBits {
		t.pair()
	}
	return nil
}

// lay writes the entries of the symbols, which are sorted by code.
func (t *table) lay(count *[maxBits + 1]int, sorted []uint16, k kind) {
	code, next := uint(0), 0 // code is reversed: its first bit is the lowest
	free, prefix, index := 1<<k.bits, -1, 0
	mask := uint(1)<<k.bits - 1
	for l := uint(1); l <= maxBits; l++ {
		for left := count[l]; left > 0; left-- {
			e := k.symbols[sorted[next]]
			next++
			if e&literal != 0 {
				e += uint32(l) | 1<<lengthShift
			} else {
				e += uint32(l) | uint32(l)<<lengthShift
			}
			if l > k.bits && int(code&mask) != prefix {
				prefix, index = int(code&mask), secondBits(count, l, left, k.bits)
				t.entries[prefix] = uint32(secondary | index<<lengthShift | free<<valueShift)
				free += 1 << index
			}
			if l <= k.bits {
				replicate(t.entries[:mask+1], code, l, e)
			} else {
				replicate(t.entries[free-1<<index:free], code>>k.bits, l-k.bits, e)
			}
			code = increment(code, l)
		}
	}
}

// replicate writes an entry wherever the lowest bits of the index are its code.
func replicate(level []uint32, code, bits uint, e uint32) {
	for i := code; i < uint(len(level)); i += 1 << bits {
		level[i] = e
	}
}

// secondBits is how many bits index the second level below a prefix whose first
// code has length l, of which left symbols are still to be laid.
func secondBits(count *[maxBits + 1]int, l uint, left int, first uint) int {
	n := l - first
	for room := 1 << n; ; room <<= 1 {
		if room -= left; room <= 0 || n+first == maxBits {
			return int(n)
		}
		n++
		left = count[n+first]
	}
}

// increment is the code of l bits after this one, both reversed.
func increment(code, l uint) uint {
	bit := uint(1) << (l - 1)
	for code&bit != 0 {
		bit >>= 1
	}
	if bit == 0 {
		return 0 // it was the last one
	}
	return code&(bit-1) | bit
}

// pair lets an entry of a literal give the literal behind it too, where the index
// holds both. Going downwards, the entries of smaller indexes are still single.
func (t *table) pair() {
	for i := 1<<litBits - 1; i >= 0; i-- {
		e := t.entries[i]
		if e&literal == 0 {
			continue
		}
		drop := e & dropMask
		second := t.entries[i>>drop]
		if second&literal == 0 || drop+second&dropMask > litBits {
			continue
		}
		t.entries[i] = literal | (drop + second&dropMask) | 2<<lengthShift | e>>valueShift<<valueShift | second>>valueShift<<(valueShift+8)
	}
}
