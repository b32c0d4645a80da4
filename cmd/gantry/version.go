package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/stage0/manifest"
)

// version is set by the Makefile to what git describe says.
var version string

// versionInfo is what gantry version prints.
type versionInfo struct {
	Version string `json:"version"`
	CRI     string `json:"cri"`
	Go      string `json:"go"`
}

func newVersion() *cobra.Command {
	var format format
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versionInfo{Version: buildVersion(), CRI: manifest.CRIVersion, Go: runtime.Version()}
			if format.json {
				return printJSON(cmd.OutOrStdout(), v)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "gantry %s (CRI %s, %s)\n", v.Version, v.CRI, v.Go)
			return nil
		},
	}
	format.register(cmd.Flags())
	return cmd
}

// buildVersion is the version that was linked in, else that of the Go module.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
