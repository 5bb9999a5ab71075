package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// printJSON prints v as one line.
func (p *program) printJSON(v any) {
	enc := json.NewEncoder(p.Stdout)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // a closed stdout is the reader's wish
}

// print prints v as JSON where that was asked for, else what text writes.
func (p *program) print(v any, text func(w io.Writer)) {
	if p.global.json {
		p.printJSON(v)
		return
	}
	text(p.Stdout)
}

// note prints a line of progress, unless -q.
func (p *program) note(format string, args ...any) {
	if !p.global.quiet {
		fmt.Fprintf(p.Stderr, format+"\n", args...)
	}
}

// color reports whether w may get colours: a terminal, without NO_COLOR.
func (p *program) color(w io.Writer) bool {
	if v, ok := p.Env("NO_COLOR"); ok && v != "" {
		return false
	}
	return isTerminal(w)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	term, ok := os.LookupEnv("TERM")
	return ok && term != "dumb"
}

// paint colours text for a terminal.
func (p *program) paint(w io.Writer, ansi, text string) string {
	if !p.color(w) {
		return text
	}
	return "\x1b[" + ansi + "m" + text + "\x1b[0m"
}

const (
	ansiGreen  = "32"
	ansiRed    = "31"
	ansiYellow = "33"
	ansiDim    = "2"
)

// table writes rows in columns.
func table(w io.Writer, head string, rows [][]string) {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, strings.ReplaceAll(head, " ", "\t"))
	for _, r := range rows {
		for i, c := range r {
			if c == "" {
				c = "-"
			}
			if i > 0 {
				fmt.Fprint(tw, "\t")
			}
			fmt.Fprint(tw, c)
		}
		fmt.Fprintln(tw)
	}
	_ = tw.Flush()
}

func num[T ~int | ~int64 | ~uint64 | ~uint32](n T) string { return strconv.FormatInt(int64(n), 10) }

// micros shows microseconds as people read them.
func micros[T ~int64 | ~uint64](us T) string {
	return (time.Duration(us) * time.Microsecond).Round(10 * time.Microsecond).String()
}

func size(b uint64) string {
	const unit = 1024
	if b < unit {
		return fmt.Sprintf("%d B", b)
	}
	v, i := float64(b), -1
	for v >= unit && i < 4 {
		v /= unit
		i++
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTP"[i])
}
