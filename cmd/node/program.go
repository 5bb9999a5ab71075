package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/baton-cluster/baton"
)

// program is the command line with its surroundings, so that tests run it in
// their own process.
type program struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Env            func(string) (string, bool)
	// Signals delivers SIGINT and SIGTERM. The first ends the command's context,
	// the second closes again.
	Signals <-chan os.Signal
	// Calm, if set, makes this process fit to be a node; see calmMonitor.
	Calm func()
	// Fit, if set, gives this process as many processors as its work needs until ctx
	// ends; see fitProcessors.
	Fit func(ctx context.Context, disk func() (writes uint64, took time.Duration))
	// GiveWay, if set, has this process yield its processors to others.
	GiveWay func(nice int) error

	global globals
	again  chan struct{} // closed by the second signal
	// ran tells a command's own failure from wrong usage: cobra reports both
	// with one error.
	ran   bool
	usage string // how the command is called, if it was called in another way
}

// globals are the flags that every command has.
type globals struct {
	config string
	json   bool
	quiet  bool
}

// Run executes one command line and returns the exit code.
func (p *program) Run(ctx context.Context, args []string) int {
	ctx, stop := p.withSignals(ctx)
	defer stop()
	root := p.root()
	root.SetArgs(args)
	root.SetIn(p.Stdin)
	root.SetOut(p.Stdout)
	root.SetErr(p.Stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !p.ran {
		p.global.json = p.global.json || p.wantsJSON(args)
		err = usageError{err, cmd.CommandPath()}
		if !cmd.HasSubCommands() {
			p.usage = cmd.UseLine()
		}
	}
	return p.report(err)
}

// wantsJSON is for a command line that could not be read to its end.
func (p *program) wantsJSON(args []string) bool {
	set, _ := p.Env(envName("json"))
	want, _ := strconv.ParseBool(set)
	for _, a := range args {
		switch v, given := strings.CutPrefix(a, "--json="); {
		case a == "--":
			return want
		case a == "--json":
			want = true
		case given:
			want, _ = strconv.ParseBool(v)
		}
	}
	return want
}

// withSignals returns a context that the first signal ends, and the function
// that ends the goroutine which listens for signals.
func (p *program) withSignals(ctx context.Context) (context.Context, func()) {
	p.again = make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			select {
			case <-quit:
				return
			case <-p.Signals:
				switch n {
				case 0:
					cancel()
				case 1:
					close(p.again)
				}
			}
		}
	}()
	return ctx, func() { close(quit); <-done; cancel() }
}

// root assembles the commands.
func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "baton",
		Short:         "Live client sessions that survive their servers",
		Long:          "Baton keeps live client sessions alive while the nodes under them are drained,\nrestarted and killed: one owner by consensus, nothing acknowledged lost, nothing twice.",
		Example:       "  baton demo\n  baton dev\n  baton status --addr 127.0.0.1:7401 --pki ./pki",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE:          needSubcommand,
	}
	f := root.PersistentFlags()
	f.StringVar(&p.global.config, "config", "", "YAML file with flags by name (environment BATON_CONFIG); flags and BATON_* variables win over it")
	f.BoolVar(&p.global.json, "json", false, "print JSON: one object, or one a line")
	f.BoolVarP(&p.global.quiet, "quiet", "q", false, "print no progress")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error { return p.layer(cmd) }
	root.AddCommand(
		p.demoCmd(), p.devCmd(), p.startCmd(), p.pkiCmd(), p.joinTokenCmd(),
		p.statusCmd(), p.membersCmd(), p.raftCmd(), p.leaveCmd(),
		p.sessionCmd(), p.migrateCmd(), p.connectionsCmd(), p.migrationsCmd(), p.migrationCmd(),
		p.drainCmd(), p.undrainCmd(), p.rebalanceCmd(), p.drillCmd(), p.jobsCmd(), p.jobCmd(), p.fenceCmd(), p.keysCmd(),
		p.leaseCmd(), p.snapshotCmd(), p.recoverCmd(),
		p.verifyCmd(), p.debugCmd(), p.benchCmd(), p.versionCmd(),
	)
	return root
}

// needSubcommand is what a command that only groups others runs.
func needSubcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return errors.New("a command is needed")
	}
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return fmt.Errorf("unknown command %q: do you mean %s?", args[0], strings.Join(near, " or "))
	}
	return fmt.Errorf("unknown command %q", args[0])
}

// run wraps a command's body: from here on an error is the command's, not one
// of usage, except where the body says so.
func (p *program) run(body func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		p.ran = true
		return body(cmd.Context(), args)
	}
}

// Exit codes: part of the command line's contract.
const (
	exitOK        = 0
	exitFailed    = 1
	exitUsage     = 2
	exitNoCluster = 3
	exitRefused   = 4
	exitViolation = 5
)

// usageError is a wrong command line.
type usageError struct {
	error
	command string
}

func (e usageError) Unwrap() error { return e.error }

// misused is err as one of usage, if settings are what was wrong before anything was done.
func misused(err error, command string) error {
	var typed *baton.Error
	if errors.As(err, &typed) && typed.Code.Label() == "bad_request" {
		return usageError{errors.New(typed.Message), command}
	}
	return err
}

// localError is a failure on this machine: of a file, a port, a child process.
// It exits 1 even where it wraps a typed error.
type localError struct{ error }

func (e localError) Unwrap() error { return e.error }

// violation is a check's finding: exit 5, with the findings already printed.
type violation struct{ msg string }

func (e violation) Error() string { return e.msg }

func exitCode(err error) int {
	var (
		usage usageError
		local localError
		found violation
		typed *baton.Error
	)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &found):
		return exitViolation
	case errors.As(err, &local):
		return exitFailed
	case errors.As(err, &typed):
		switch typed.Code.Label() {
		case "unavailable", "not_leader", "deadline_exceeded":
			return exitNoCluster
		case "internal":
			return exitFailed
		}
		return exitRefused
	case errors.Is(err, context.DeadlineExceeded):
		return exitNoCluster
	}
	return exitFailed
}

// errorJSON is the object that --json prints for an error.
type errorJSON struct {
	Error struct {
		Code      string `json:"code"`
		Message   string `json:"message"`
		Retryable bool   `json:"retryable"`
		Leader    string `json:"leader"`
	} `json:"error"`
}

// report prints err and returns its exit code.
func (p *program) report(err error) int {
	code := exitCode(err)
	var found violation
	if err == nil || errors.As(err, &found) {
		if err != nil {
			fmt.Fprintln(p.Stderr, "baton:", err)
		}
		return code
	}
	var printed silent
	if p.global.json && !errors.As(err, &printed) {
		p.printJSON(describe(err, code))
	}
	fmt.Fprintln(p.Stderr, "baton:", strings.ReplaceAll(err.Error(), "\n", "; "))
	var usage usageError
	if errors.As(err, &usage) {
		if p.usage != "" {
			fmt.Fprintln(p.Stderr, "Usage:", p.usage)
		}
		fmt.Fprintf(p.Stderr, "Run '%s --help' for more.\n", usage.command)
	}
	return code
}

func describe(err error, code int) errorJSON {
	var out errorJSON
	var typed *baton.Error
	out.Error.Message = err.Error()
	switch {
	case code == exitUsage:
		out.Error.Code = "usage"
	case errors.As(err, &typed):
		out.Error.Code = typed.Code.Label()
		out.Error.Message = typed.Message
		out.Error.Retryable = typed.Retryable()
		out.Error.Leader = typed.Leader
	case code == exitNoCluster:
		out.Error.Code, out.Error.Retryable = "unavailable", true
	default:
		out.Error.Code = "failed"
	}
	return out
}

// shutdownGrace is how long a command that ended may take to tidy up.
const shutdownGrace = 10 * time.Second
