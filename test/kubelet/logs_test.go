package kubelet

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/gantry-cri/gantry/test/harness"
)

// logDir is where the logs of a container are.
func (n *node) logDir(pod *corev1.Pod, container string) string {
	return filepath.Join(n.kubelet.PodLogs, fmt.Sprintf("default_%s_%s", pod.Name, pod.UID), container)
}

// readLog reads the log of a container's first attempt, the rotated files
// included, the oldest first. Pieces of a line are put together, also when the
// log was rotated between them.
func readLog(dir string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "0.log.*"))
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	var all []string
	var line string
	for _, f := range append(files, filepath.Join(dir, "0.log")) {
		if strings.HasSuffix(f, ".tmp") || slices.Contains(files, f+".gz") {
			continue // the kubelet is compressing it
		}
		entries, err := readLogFile(f)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", f, err)
		}
		for _, e := range entries {
			line += e.text
			if !e.partial {
				all, line = append(all, line), ""
			}
		}
	}
	return all, nil
}

// entry is a line of a CRI log: a line that was printed, or a piece of one.
type entry struct {
	text    string
	partial bool
}

func readLogFile(file string) ([]entry, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := io.Reader(f)
	if strings.HasSuffix(file, ".gz") {
		if r, err = gzip.NewReader(f); err != nil {
			return nil, err
		}
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	var all []entry
	for line := range strings.Lines(string(data)) {
		if !strings.HasSuffix(line, "\n") {
			break // being written
		}
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(fields) != 4 || (fields[2] != "F" && fields[2] != "P") {
			return nil, fmt.Errorf("not a line of a CRI log: %q", line)
		}
		all = append(all, entry{fields[3], fields[2] == "P"})
	}
	return all, nil
}

// numbered are the lines of a log that read "WORD NUMBER ...".
func numbered(dir, word string) ([]int, error) {
	all, err := readLog(dir)
	for range 50 { // between the kubelet's renaming it and the runtime's opening another there is none
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
		time.Sleep(harness.Slowly(20 * time.Millisecond))
		all, err = readLog(dir)
	}
	if err != nil {
		return nil, err
	}
	var numbers []int
	for _, line := range all {
		if !strings.HasPrefix(line, word+" ") {
			continue
		}
		var number int
		if _, err := fmt.Sscanf(line, word+" %d", &number); err != nil {
			return nil, fmt.Errorf("line %q: %w", line, err)
		}
		numbers = append(numbers, number)
	}
	return numbers, nil
}

// checkCount complains unless the numbered lines of a log count from 0.
func checkCount(dir, word string) string {
	numbers, err := numbered(dir, word)
	if err != nil {
		return err.Error()
	}
	for i, number := range numbers {
		if i != number {
			return fmt.Sprintf("line %d in %s says %d", i, dir, number)
		}
	}
	return ""
}

// countLines is how many numbered lines a log has.
func countLines(t *testing.T, dir, word string) int {
	t.Helper()
	numbers, err := numbered(dir, word)
	if err != nil {
		t.Fatal(err)
	}
	return len(numbers)
}

// statsOf complains unless the summary has figures of a container.
func statsOf(summary []byte, pod, container string) string {
	var s statsapi.Summary
	if err := json.Unmarshal(summary, &s); err != nil {
		return err.Error()
	}
	i := slices.IndexFunc(s.Pods, func(p statsapi.PodStats) bool { return p.PodRef.Name == pod })
	if i < 0 {
		return "no such pod in the summary"
	}
	j := slices.IndexFunc(s.Pods[i].Containers, func(c statsapi.ContainerStats) bool { return c.Name == container })
	if j < 0 {
		return fmt.Sprintf("no such container in %+v", s.Pods[i])
	}
	c := s.Pods[i].Containers[j]
	figures := map[string]*uint64{}
	if c.CPU != nil {
		figures["CPU time"], figures["CPU use"] = c.CPU.UsageCoreNanoSeconds, c.CPU.UsageNanoCores
	}
	if c.Memory != nil {
		figures["working set"], figures["memory"] = c.Memory.WorkingSetBytes, c.Memory.UsageBytes
	}
	if c.Rootfs != nil {
		figures["writable layer"] = c.Rootfs.UsedBytes
	}
	for _, name := range []string{"CPU time", "CPU use", "working set", "memory", "writable layer"} {
		if v := figures[name]; v == nil || *v == 0 {
			return fmt.Sprintf("no %s in the summary: %s", name, summary)
		}
	}
	if *figures["writable layer"] < 100<<10 {
		return fmt.Sprintf("writable layer has %d bytes, a file of 100 KiB was written", *figures["writable layer"])
	}
	return ""
}
