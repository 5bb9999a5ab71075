package main

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is the release; the build may set it (-ldflags "-X main.version=…").
var version = "dev"

const (
	// featureLevel is the highest level of the replicated state that this binary
	// reads and writes.
	featureLevel = 1
	// wireVersion is the version of the frames on both planes.
	wireVersion = 1
)

type versionJSON struct {
	Version      string `json:"version"`
	Commit       string `json:"commit"`
	FeatureLevel int    `json:"feature_level"`
	Wire         int    `json:"wire"`
}

// commit is the revision that the binary was built from, empty if unknown.
func commit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	var rev, dirty string
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			rev = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "-dirty"
		}
	}
	if rev == "" {
		return ""
	}
	return rev + dirty
}

func (p *program) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Tell version, commit, and format levels",
		Example: "  baton version --json",
		Args:    cobra.NoArgs,
		RunE: p.run(func(context.Context, []string) error {
			v := versionJSON{Version: version, Commit: commit(), FeatureLevel: featureLevel, Wire: wireVersion}
			p.print(v, func(w io.Writer) {
				fmt.Fprintf(w, "baton %s %s (feature level %d, wire %d)\n", v.Version, v.Commit, v.FeatureLevel, v.Wire)
			})
			return nil
		}),
	}
}
