// Package mutants plants single faults in the product's source, with
// `go build -overlay`, so that no switch for them lives in the product. A
// checker that passes a mutant proves nothing about the rest.
package mutants

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Edit replaces text in one file of the repository. Old must stand there
// exactly once: where the source has moved on, the mutant fails loudly instead
// of testing nothing.
type Edit struct {
	File     string // relative to the repository's root
	Old, New string
}

// Mutant is a fault: one rule taken out, wherever it is kept.
type Mutant struct {
	Name  string
	Fault string // what is taken out
	// Package is whose own tests should notice, "" where only a whole cluster can.
	// Tests, where set, are those that see the fault without fail.
	Package, Tests string
	// Nemesis has the kinds of jepsen-lite's faults that bring it to light; ""
	// where they are not known to. Client: the fault is in the client library, so
	// it is jepsen-lite itself that is built with it, not the nodes.
	Nemesis string
	Client  bool
	// Storm has the kinds of the simulation's faults that bring it to light, "" where
	// they are not known.
	Storm string
	Edits []Edit
}

// Overlay writes the changed files and the overlay file under dir, and returns
// the latter's path, for `go build -overlay` and `go test -overlay`.
func (m Mutant) Overlay(root, dir string) (string, error) {
	text := map[string]string{}
	for _, e := range m.Edits {
		src, err := filepath.Abs(filepath.Join(root, filepath.FromSlash(e.File)))
		if err != nil {
			return "", err
		}
		if _, read := text[src]; !read {
			b, err := os.ReadFile(src)
			if err != nil {
				return "", fmt.Errorf("mutant %s: %w", m.Name, err)
			}
			text[src] = string(b)
		}
		if n := strings.Count(text[src], e.Old); n != 1 {
			return "", fmt.Errorf("mutant %s: %s holds this %d times, want once; bring the mutant up to date:\n%s", m.Name, e.File, n, e.Old)
		}
		text[src] = strings.Replace(text[src], e.Old, e.New, 1)
	}
	replace := map[string]string{}
	for src, t := range text {
		out := filepath.Join(dir, fmt.Sprintf("%s-%02d-%s", m.Name, len(replace), filepath.Base(src)))
		if err := os.WriteFile(out, []byte(t), 0o600); err != nil {
			return "", err
		}
		replace[src] = out
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, m.Name+".overlay.json")
	return path, os.WriteFile(path, b, 0o600)
}

// Find returns the mutant of that name.
func Find(name string) (Mutant, bool) {
	for _, m := range All {
		if m.Name == name {
			return m, true
		}
	}
	return Mutant{}, false
}
