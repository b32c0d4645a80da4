package inflate

import "io"

// reader gives a Decoder the form of an io.Reader.
type reader struct {
	d    *Decoder
	buf  []byte
	rest []byte
	err  error
}

// NewReader returns a reader of what the gzip stream in src decompresses to, for
// those who do not want to hold buffers. It copies what Fill would not.
func NewReader(src io.Reader) io.Reader {
	return &reader{d: New(src), buf: make([]byte, Window+inputSize+Slack)}
}

func (r *reader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		var n int
		n, r.err = r.d.Fill(r.buf)
		r.rest = r.buf[Window : Window+n]
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
