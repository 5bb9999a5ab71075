package main

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"os"
	"slices"
	"sort"
	"strings"

	"github.com/baton-cluster/baton/test/jepsen-lite/history"
	"github.com/baton-cluster/baton/test/jepsen-lite/mesh"
	"github.com/baton-cluster/baton/test/jepsen-lite/nemesis"
)

// The report as one HTML page, which needs nothing besides itself.

//go:embed report.html
var reportPage string

const (
	chartWidth  = 1200.0
	chartHeight = 120.0
	rowHeight   = 14.0
	buckets     = 300
	picturesMax = 5
)

// page is what the template shows.
type page struct {
	Report   report
	Replay   string
	Width    float64
	Height   float64
	Faults   rows
	Owners   rows
	OK, Bad  string // SVG paths: operations that ended well, and not
	Most     int    // operations in a bucket
	Latency  []curve
	Seconds  []tick
	Nodes    []node
	Gaps     []gap
	Pictures []picture
}

type rows struct {
	Rows   []row
	Height float64
}

type row struct {
	Name string
	Y    float64
	Bars []bar
}

type bar struct {
	X, W  float64
	Color string
	Title string
}

type curve struct{ Name, Path, Color string }

type tick struct {
	X     float64
	Label string
}

type node struct{ Name, Color string }

// gap is a time in which a session that had load was not served at all.
type gap struct {
	Session  string
	From, To float64
}

type picture struct {
	Session string
	Page    string
}

var palette = []string{"#4878cf", "#d65f5f", "#6acc65", "#b47cc7", "#c4ad66", "#77bedb", "#555555"}

func nodeColor(name string, nodes int) string {
	for i := range nodes {
		if mesh.Node(i) == name {
			return palette[i%len(palette)]
		}
	}
	return "#999999"
}

// write makes the page.
func (t *torture) write(w io.Writer, r report) error {
	tpl, err := template.New("report").Parse(reportPage)
	if err != nil {
		return err
	}
	ops := t.rec.Ops()
	length := int64(1)
	for i := range ops {
		length = max(length, ops[i].Return)
	}
	scale := func(at int64) float64 {
		return math.Round(10*chartWidth*float64(min(max(at, 0), length))/float64(length)) / 10
	}
	p := page{Report: r, Replay: replay(r), Width: chartWidth, Height: chartHeight}
	p.Faults = faultRows(t.spans, scale)
	p.Owners = ownerRows(ops, t.nodes, scale)
	p.availability(ops, length)
	p.latencies(ops, length)
	for i := range t.nodes {
		p.Nodes = append(p.Nodes, node{mesh.Node(i), nodeColor(mesh.Node(i), t.nodes)})
	}
	for i := range 11 {
		at := length / 10 * int64(i)
		p.Seconds = append(p.Seconds, tick{scale(at), fmt.Sprintf("%.0f s", float64(at)/1e9)})
	}
	p.Gaps = longestGaps(ops)
	for _, v := range r.Violations {
		if len(v.Picture) > 0 && len(p.Pictures) < picturesMax {
			p.Pictures = append(p.Pictures, picture{v.Session, string(v.Picture)})
		}
	}
	return tpl.Execute(w, p)
}

// replay is the command that draws the same faults and load.
func replay(r report) string {
	return fmt.Sprintf("make jepsen DURATION=%s JEPSEN=%q", r.Duration, strings.Join(r.Args, " "))
}

func faultRows(spans []nemesis.Span, scale func(int64) float64) rows {
	by := map[string][]bar{}
	for _, s := range spans {
		by[string(s.Kind)] = append(by[string(s.Kind)], bar{
			X: scale(s.From), W: max(scale(s.To)-scale(s.From), 1.5), Color: "#c44e52",
			Title: fmt.Sprintf("%s %s, %.1f to %.1f s", s.Kind, s.Node, float64(s.From)/1e9, float64(s.To)/1e9),
		})
	}
	return stack(by)
}

func stack(by map[string][]bar) rows {
	var out rows
	names := make([]string, 0, len(by))
	for name := range by {
		names = append(names, name)
	}
	sort.Strings(names)
	for i, name := range names {
		out.Rows = append(out.Rows, row{name, rowHeight * float64(i), by[name]})
	}
	out.Height = rowHeight * float64(len(names))
	return out
}

// ownerRows has for each session who answered for it, epoch by epoch.
func ownerRows(ops []history.Op, nodes int, scale func(int64) float64) rows {
	type key struct {
		session string
		epoch   uint64
	}
	type reign struct {
		node     string
		from, to int64
	}
	reigns := map[key]*reign{}
	for i := range ops {
		op := &ops[i]
		if op.Outcome != history.OK || op.Epoch == 0 {
			continue
		}
		k := key{op.Session, op.Epoch}
		if r := reigns[k]; r != nil {
			r.from, r.to = min(r.from, op.Return), max(r.to, op.Return)
		} else {
			reigns[k] = &reign{op.Node, op.Return, op.Return}
		}
	}
	by := map[string][]bar{}
	for k, r := range reigns {
		by[k.session] = append(by[k.session], bar{
			X: scale(r.from), W: max(scale(r.to)-scale(r.from), 1), Color: nodeColor(r.node, nodes),
			Title: fmt.Sprintf("%s, epoch %d: %s answered from %.2f to %.2f s", k.session, k.epoch, r.node, float64(r.from)/1e9, float64(r.to)/1e9),
		})
	}
	for _, bars := range by {
		slices.SortFunc(bars, func(a, b bar) int { return int(a.X - b.X) })
	}
	return stack(by)
}

func bucketOf(at, length int64) int { return int(min(at*buckets/length, buckets-1)) }

// area is a path along the top of the values, and back along the bottom.
func area(values []float64, most float64) string {
	var b strings.Builder
	step := chartWidth / float64(len(values))
	fmt.Fprintf(&b, "M0 %.0f", chartHeight)
	for i, v := range values {
		y := chartHeight - chartHeight*v/max(most, 1)
		fmt.Fprintf(&b, "L%.1f %.1fL%.1f %.1f", step*float64(i), y, step*float64(i+1), y)
	}
	fmt.Fprintf(&b, "L%.0f %.0fZ", chartWidth, chartHeight)
	return b.String()
}

func (p *page) availability(ops []history.Op, length int64) {
	ok, bad := make([]float64, buckets), make([]float64, buckets)
	most := 0.0
	for i := range ops {
		at := bucketOf(ops[i].Return, length)
		if ops[i].Outcome == history.OK {
			ok[at]++
		} else {
			bad[at]++
		}
		most = max(most, ok[at], bad[at])
	}
	p.OK, p.Bad, p.Most = area(ok, most), area(bad, most), int(most)
}

// latencies are drawn on a logarithmic scale, from 0.1 ms to 100 s.
func (p *page) latencies(ops []history.Op, length int64) {
	by := make([][]float64, buckets)
	for i := range ops {
		if op := &ops[i]; op.Outcome == history.OK {
			at := bucketOf(op.Return, length)
			by[at] = append(by[at], float64(op.Return-op.Call)/1e6)
		}
	}
	for _, c := range []struct {
		name, color string
		q           float64
	}{{"p50", "#4878cf", 0.5}, {"p99", "#c4ad66", 0.99}, {"longest", "#d65f5f", 1}} {
		var b strings.Builder
		pen := "M"
		for i, ms := range by {
			if len(ms) == 0 {
				pen = "M"
				continue
			}
			slices.Sort(ms)
			v := ms[min(int(c.q*float64(len(ms))), len(ms)-1)]
			y := chartHeight * (1 - (math.Log10(max(v, 0.1))+1)/6)
			fmt.Fprintf(&b, "%s%.1f %.1f", pen, chartWidth*(float64(i)+0.5)/buckets, max(y, 0))
			pen = "L"
		}
		p.Latency = append(p.Latency, curve{c.name, b.String(), c.color})
	}
}

// gapsMax are shown.
const gapsMax = 15

// longestGaps are the longest times between two answers of one session while
// somebody was asking.
func longestGaps(ops []history.Op) []gap {
	var out []gap
	for session, part := range history.BySession(ops) {
		last := int64(-1)
		for i := range part { // in order of return
			op := &part[i]
			if op.Outcome != history.OK {
				continue
			}
			if last >= 0 && op.Call < last+int64(1e9) && op.Return-last > int64(1e9) {
				out = append(out, gap{session, float64(last) / 1e9, float64(op.Return) / 1e9})
			}
			last = op.Return
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].To-out[i].From > out[j].To-out[j].From })
	return out[:min(len(out), gapsMax)]
}

func writeFile(path string, b []byte) error { return os.WriteFile(path, b, 0o600) }
