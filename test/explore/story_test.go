package explore

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/baton-cluster/baton/test/explore/search"
)

// A story is a way to a violation as text: its scope, what was wrong, and the
// steps, a line each. What the search finds is printed as one; kept in testdata,
// it is followed by TestStories.

// story is one file of testdata.
type story struct {
	scope scope // with the rule that is taken out for it, if it takes that
	wrong string
	steps []string
}

// numbers are a scope's bounds by name.
func (sc *scope) numbers() map[string]*uint8 {
	return map[string]*uint8{
		"nodes": &sc.nodes, "clients": &sc.clients, "cuts": &sc.cuts, "gone": &sc.gone, "losses": &sc.losses, "copies": &sc.copies,
		"crashes": &sc.crashes, "fences": &sc.fences, "moves": &sc.moves, "directors": &sc.directors, "deaths": &sc.deaths,
		"ticks": &sc.ticks, "closes": &sc.closes, "fails": &sc.fails,
	}
}

// inOrder are the names of numbers as they are printed.
var inOrder = strings.Fields("nodes clients moves cuts gone losses copies crashes fences directors deaths ticks closes fails")

// bounds tells a scope in a line.
func (sc scope) bounds() string {
	var parts []string
	numbers := sc.numbers()
	for _, name := range inOrder {
		if n := *numbers[name]; n > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", name, n))
		}
	}
	for _, p := range [...][2]string{{"plan", sc.plan}, {"planB", sc.planB}} {
		if p[1] != "" {
			parts = append(parts, p[0]+" "+p[1])
		}
	}
	if sc.shared {
		parts = append(parts, "shared 1")
	}
	return strings.Join(parts, " ")
}

func (st *story) String() string {
	return fmt.Sprintf("scope %s\nwithout %s\nwrong %s\n\n%s\n", st.scope.bounds(), st.scope.without, st.wrong, strings.Join(st.steps, "\n"))
}

func readStory(path string) (st story, err error) {
	f, err := os.Open(path)
	if err != nil {
		return st, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, rest, _ := strings.Cut(lines.Text(), " ")
		switch {
		case lines.Text() == "" || strings.HasPrefix(key, "#"):
		case key == "scope":
			if err := st.scope.parse(rest); err != nil {
				return st, err
			}
		case key == "without":
			st.scope.without = rest
		case key == "wrong":
			st.wrong = rest
		default:
			st.steps = append(st.steps, lines.Text())
		}
	}
	return st, nil
}

func (sc *scope) parse(text string) error {
	words := strings.Fields(text)
	numbers := sc.numbers()
	for i := 0; i+1 < len(words); i += 2 {
		switch key, value := words[i], words[i+1]; key {
		case "plan":
			sc.plan = value
		case "planB":
			sc.planB = value
		case "shared":
			sc.shared = true
		default:
			n := numbers[key]
			if n == nil {
				return fmt.Errorf("a scope has no %q", key)
			}
			if _, err := fmt.Sscan(value, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// TestStories: each story goes wrong without its rule, and does not with it.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			st, err := readStory(path)
			if err != nil {
				t.Fatal(err)
			}
			if st.scope.without != "" {
				wrong, skipped, _ := search.Follow[state](newWorld(st.scope), st.steps)
				if wrong != st.wrong {
					t.Errorf("without %q it comes to %q, want %q; steps that there were not: %q", st.scope.without, wrong, st.wrong, skipped)
				}
			}
			st.scope.without = ""
			if wrong, _, _ := search.Follow[state](newWorld(st.scope), st.steps); wrong != "" {
				t.Errorf("%s", wrong)
			}
		})
	}
}

func TestStoryIsReadAsWritten(t *testing.T) {
	st := story{wrong: "all of it", steps: []string{"node 1 crashes", "client a is warm at node 2"}}
	st.scope = scope{nodes: 2, clients: 2, plan: "wr", planB: "R", shared: true, moves: 1, copies: 3, without: "orphans"}
	path := filepath.Join(t.TempDir(), "s.txt")
	if err := os.WriteFile(path, []byte(st.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := readStory(path)
	if err != nil || again.String() != st.String() || again.scope != st.scope {
		t.Errorf("%v\n%s\n%s", err, &again, &st)
	}
}
