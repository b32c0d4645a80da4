// Command limit measures the work that a pull cannot do without, each step alone:
// receiving the blobs, hashing them, decompressing, hashing the archives, writing the
// files, bringing them to the disk, which is the kernel's work, and writing as many
// bytes to the disk. The benchmarks compare with it.
//
//	limit -dir DIR -server PID URL...
//
// Each URL is that of a layer's blob; DIR lies on an empty file system, of a machine that
// does nothing else. It prints one JSON object, whose fields test/bench/result describes.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/klauspost/compress/zstd"

	"github.com/gantry-cri/gantry/stage0/inflate"
)

// bufferSize is how much is read and written at a time, as in the pipeline of a layer.
const bufferSize = 256 << 10

// limit is what is printed: bytes, seconds of CPU, and disk, seconds.
type limit struct {
	Blob    int64 `json:"blob_bytes"`
	Tar     int64 `json:"tar_bytes"`
	Content int64 `json:"content_bytes"`
	Entries int   `json:"entries"`

	Send       float64 `json:"send"`
	Receive    float64 `json:"receive"`
	HashBlob   float64 `json:"hash_blob"`
	Decompress float64 `json:"decompress"`
	HashTar    float64 `json:"hash_tar"`
	Write      float64 `json:"write"`
	WriteBack  float64 `json:"write_back"`

	Disk float64 `json:"disk"`
}

func main() {
	dir := flag.String("dir", "", "`DIR` on an empty file system, to write to")
	server := flag.Int("server", 0, "`PID` of the registry")
	flag.Parse()
	// No collector takes part: archives are kept in memory.
	debug.SetGCPercent(-1)
	var l limit
	err := l.measure(*dir, *server, flag.Args())
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(l)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "limit:", err)
		os.Exit(1) //nolint:forbidigo // main alone exits, and this is it
	}
}

func (l *limit) measure(dir string, server int, urls []string) error {
	if dir == "" || server == 0 || len(urls) == 0 {
		return errors.New("-dir, -server and the URLs of blobs are needed")
	}
	for i, url := range urls {
		if err := l.layer(filepath.Join(dir, fmt.Sprint(i)), server, url); err != nil {
			return fmt.Errorf("measure %s: %w", url, err)
		}
	}
	var err error
	l.Disk, err = writeThrough(filepath.Join(dir, "disk"), l.Content)
	return err
}

// layer adds what one layer costs. Its files are written to dir.
func (l *limit) layer(dir string, server int, url string) error {
	blob, err := download(url)
	if err != nil {
		return err
	}
	if err := l.receive(server, url); err != nil {
		return err
	}
	l.Blob += int64(len(blob))
	l.HashBlob += cpuOf(func() { hash(blob) })
	var n int64
	l.Decompress += cpuOf(func() { n, err = decompress(io.Discard, blob) })
	if err != nil {
		return err
	}
	l.Tar += n
	archive := bytes.NewBuffer(make([]byte, 0, n))
	if _, err := decompress(archive, blob); err != nil {
		return err
	}
	l.HashTar += cpuOf(func() { hash(archive.Bytes()) })
	var w written
	l.Write += cpuOf(func() { w, err = writeFiles(dir, archive.Bytes()) })
	l.Content += w.content
	l.Entries += w.entries
	if err != nil {
		return err
	}
	spent, err := machineCPU(func() error { return syncFS(dir) })
	l.WriteBack += spent
	return err
}

// receive adds what the blob costs on its way through loopback, at either end.
func (l *limit) receive(server int, url string) error {
	before, err := processCPU(server)
	if err != nil {
		return err
	}
	buf := make([]byte, bufferSize)
	l.Receive += cpuOf(func() { err = fetch(url, buf, func([]byte) {}) })
	if err != nil {
		return err
	}
	after, err := processCPU(server)
	l.Send += after - before
	return err
}

// download brings a blob into memory.
func download(url string) ([]byte, error) {
	var all bytes.Buffer
	err := fetch(url, make([]byte, bufferSize), func(b []byte) { all.Write(b) })
	return all.Bytes(), err
}

// fetch reads what is at url through buf.
func fetch(url string, buf []byte, each func([]byte)) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // it was read to its end, or failed
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the registry answers %s", resp.Status)
	}
	for {
		n, err := resp.Body.Read(buf)
		each(buf[:n])
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// decompress decompresses as gantry does and returns the length.
func decompress(w io.Writer, blob []byte) (int64, error) {
	buf := make([]byte, inflate.Window+bufferSize+inflate.Slack)
	fill := inflate.New(bytes.NewReader(blob)).Fill
	if bytes.HasPrefix(blob, []byte{0x28, 0xb5, 0x2f, 0xfd}) {
		d, err := zstd.NewReader(bytes.NewReader(blob), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(false))
		if err != nil {
			return 0, err
		}
		defer d.Close()
		fill = func(b []byte) (int, error) { return d.Read(b[inflate.Window:]) }
	}
	for total := int64(0); ; {
		n, err := fill(buf)
		total += int64(n)
		if _, err := w.Write(buf[inflate.Window : inflate.Window+n]); err != nil {
			return 0, err
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return 0, err
		}
	}
}
