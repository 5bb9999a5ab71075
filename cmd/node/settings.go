package main

import (
	"errors"
	"fmt"
	"os"
	"sort"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"gopkg.in/yaml.v3"
)

// notSettings are flags that only make sense on a command line.
var notSettings = map[string]bool{"help": true, "config": true}

// layer fills the flags that the command line left alone: from BATON_<FLAG>,
// else from the YAML file. All faults are reported at once.
func (p *program) layer(cmd *cobra.Command) error {
	if !cmd.Flags().Changed("config") {
		if v, ok := p.Env("BATON_CONFIG"); ok {
			p.global.config = v
		}
	}
	file, err := readSettings(p.global.config)
	if err != nil {
		return err
	}
	var faults []error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Changed || notSettings[f.Name] {
			return
		}
		name := envName(f.Name)
		if v, ok := p.Env(name); ok {
			if err := cmd.Flags().Set(f.Name, v); err != nil {
				faults = append(faults, fmt.Errorf("environment %s: %w", name, err))
			}
			return
		}
		if v, ok := file[f.Name]; ok {
			if err := cmd.Flags().Set(f.Name, v); err != nil {
				faults = append(faults, fmt.Errorf("%s: %s: %w", p.global.config, f.Name, err))
			}
		}
	})
	faults = append(faults, unknownSettings(cmd.Root(), file, p.global.config)...)
	return errors.Join(faults...)
}

func envName(flag string) string {
	return "BATON_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// readSettings reads a flat YAML map of flag names to values. A list stands for
// a comma-separated value.
func readSettings(path string) (map[string]string, error) {
	if path == "" {
		return nil, nil
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	var doc map[string]any
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		return nil, fmt.Errorf("--config %s: %w", path, err)
	}
	out := make(map[string]string, len(doc))
	for key, v := range doc {
		name := strings.ReplaceAll(key, "_", "-")
		switch v := v.(type) {
		case []any:
			parts := make([]string, len(v))
			for i, e := range v {
				parts[i] = fmt.Sprint(e)
			}
			out[name] = strings.Join(parts, ",")
		case nil: // a name without a value
			out[name] = ""
		case map[string]any:
			return nil, fmt.Errorf("--config %s: %s must be a value or a list", path, key)
		default:
			out[name] = fmt.Sprint(v)
		}
	}
	return out, nil
}

// unknownSettings reports settings that are no command's flag: a typing
// mistake in a file must not pass in silence. One file serves all commands, so
// another command's flag is fine.
func unknownSettings(root *cobra.Command, file map[string]string, path string) []error {
	known := map[string]bool{}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		note := func(f *pflag.Flag) { known[f.Name] = !notSettings[f.Name] }
		c.Flags().VisitAll(note)
		c.PersistentFlags().VisitAll(note)
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	var faults []error
	for name := range file {
		if !known[name] {
			faults = append(faults, fmt.Errorf("%s: no command has a flag %q", path, name))
		}
	}
	sort.Slice(faults, func(i, j int) bool { return faults[i].Error() < faults[j].Error() })
	return faults
}
