package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"
)

// format is the --format flag of commands that print data.
type format struct{ json bool }

func (f *format) register(flags *pflag.FlagSet) {
	flags.Func("format", "`FORMAT` of the output: text or json (default text)", func(s string) error {
		switch s {
		case "json":
			f.json = true
		case "text":
			f.json = false
		default:
			return fmt.Errorf("want text or json")
		}
		return nil
	})
}

// registerJSONFormat adds --format to a command whose data is JSON in any case.
func registerJSONFormat(flags *pflag.FlagSet) {
	flags.Func("format", "`FORMAT` of the output: json, which it has without this flag too", func(s string) error {
		if s != "json" {
			return fmt.Errorf("want json")
		}
		return nil
	})
}

// printJSON prints v indented, for people and for jq.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// table prints rows of cells in columns that line up.
func table(w io.Writer, header string, rows func(row func(cells ...any))) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, header)
	rows(func(cells ...any) {
		for i, c := range cells {
			if i > 0 {
				fmt.Fprint(tw, "\t")
			}
			fmt.Fprint(tw, c)
		}
		fmt.Fprintln(tw)
	})
	return tw.Flush()
}

// ago says how long a moment is past, in the largest unit that is not zero.
func ago(t *time.Time) string {
	if t == nil || t.IsZero() {
		return "-"
	}
	d := time.Since(*t)
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}} {
		if d >= u.unit {
			return fmt.Sprintf("%d%s ago", d/u.unit, u.name)
		}
	}
	return fmt.Sprintf("%ds ago", d/time.Second)
}

// size prints a number of bytes in the unit that people read.
func size(n int64) string {
	const unit = 1000
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, prefix := float64(n)/unit, 0
	for v >= unit && prefix < 4 {
		v, prefix = v/unit, prefix+1
	}
	return fmt.Sprintf("%.1f %cB", v, "kMGTP"[prefix])
}
