package baton_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/baton-cluster/baton"

// importTable says which rooms of the house each room may enter. What is not
// here is forbidden, and that is the point: store, migrate's cores and lease
// stay free of IO because they cannot reach any; clients of rpcnet link no
// server parts; the command knows nothing but the public face.
var importTable = map[string]string{
	"wire":       "",
	"lease":      "wire",
	"seam":       "",
	"pool":       "",
	"pki":        "wire",
	"store":      "wire",
	"fsm":        "store wire",
	"membership": "seam wire",
	"bulk":       "wire",
	"rpcnet":     "bulk pool seam wire",
	"migrate":    "bulk lease seam store wire",
	"cluster":    "fsm lease pool rpcnet seam store wire",
	"worker":     "bulk migrate pool seam store wire",
	"":           "cluster fsm lease membership migrate pki rpcnet seam store wire worker",
	"cmd/node":   " ",
	"examples":   " ",
}

// thirdParty bans libraries where they would betray the room's purpose.
var thirdParty = map[string]string{
	"lease":   "net os sync math/rand math/rand/v2 crypto/rand log log/slog github.com/hashicorp/raft github.com/quic-go/quic-go",
	"store":   "net os math/rand math/rand/v2 crypto/rand sync log log/slog github.com/hashicorp/raft github.com/quic-go/quic-go",
	"fsm":     "net os math/rand math/rand/v2 crypto/rand github.com/quic-go/quic-go",
	"wire":    "net os github.com/hashicorp/raft github.com/quic-go/quic-go",
	"bulk":    "net os sync context github.com/quic-go/quic-go",
	"worker":  "net os github.com/hashicorp/raft github.com/quic-go/quic-go",
	"migrate": "net/http os github.com/hashicorp/raft github.com/quic-go/quic-go",
}

// excused are single files: store's look-ups borrow memory, and lock nothing.
var excused = map[string]string{"store/seek.go": "sync"}

func TestImportTable(t *testing.T) {
	seen := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (path == "test" || path == "tools" || path != "." && strings.HasPrefix(d.Name(), ".")) {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		room := filepath.ToSlash(filepath.Dir(path))
		switch {
		case room == ".":
			room = ""
		case strings.HasPrefix(room, "examples/"):
			room = "examples"
		}
		seen[room] = true
		checkImports(t, room, path)
		return nil
	})
	must(t, err)
	for room := range importTable {
		if !seen[room] {
			t.Errorf("the table has a room %q that the house has not", room)
		}
	}
}

func checkImports(t *testing.T, room, path string) {
	allowed, known := importTable[room]
	if !known {
		t.Errorf("%s: room %q is not in the import table", path, room)
		return
	}
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
	must(t, err)
	for _, spec := range f.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		must(t, err)
		if contains(thirdParty[room], name) && !contains(excused[path], name) {
			t.Errorf("%s imports %s, which room %q must not", path, name, room)
		}
		inner, ours := strings.CutPrefix(name, module)
		if !ours {
			continue
		}
		inner = strings.TrimPrefix(inner, "/")
		if inner == "" && allowed == " " {
			continue // the public face
		}
		if !contains(allowed, inner) {
			t.Errorf("%s imports %s: room %q may enter %q", path, name, room, allowed)
		}
	}
}

// TestTimeComesThroughTheSeam: these rooms are run in virtual time, so none may
// look at a clock of its own.
func TestTimeComesThroughTheSeam(t *testing.T) {
	for _, room := range []string{"bulk", "store", "lease", "migrate", "worker"} {
		files, err := filepath.Glob(filepath.Join(room, "*.go"))
		must(t, err)
		for _, path := range files {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			src, err := os.ReadFile(path)
			must(t, err)
			if call := ownClock.Find(src); call != nil {
				t.Errorf("%s calls %s…: take seam.Clock, or the time as an argument", path, call)
			}
		}
	}
}

var ownClock = regexp.MustCompile(`\btime\.(Now|Since|Until|After|AfterFunc|NewTimer|NewTicker|Tick|Sleep)\(`)

func contains(list, name string) bool {
	for f := range strings.FieldsSeq(list) {
		if f == name {
			return true
		}
	}
	return false
}
