package config

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/rawbytes"
	"github.com/knadh/koanf/v2"

	"github.com/stormpost/stormpost/internal/credential"
)

// delim divides the parts of a key; lanes have dots in their names.
const delim = "/"

// Load reads the file at path, if path isn't empty, and over it the STORMPOST_*
// variables of environ (NAME=value, as os.Environ gives them), over Default.
// It resolves secrets, and does not Validate: flags may still be set over it. It
// fails with an Error.
func Load(path string, environ []string) (Config, error) {
	c, err := load(path, environ)
	return c, Wrong(err)
}

func load(path string, environ []string) (Config, error) {
	c := Default()
	k := koanf.New(delim)
	if path != "" {
		b, err := os.ReadFile(path)
		if err != nil {
			return c, fmt.Errorf("config: %w", err)
		}
		if err := k.Load(rawbytes.Provider(b), yaml.Parser()); err != nil {
			return c, fmt.Errorf("config: %s: %w", path, err)
		}
	}
	vars, err := fromEnv(environ)
	if err != nil {
		return c, err
	}
	if err := k.Load(confmap.Provider(vars, delim), nil); err != nil {
		return c, fmt.Errorf("config: %w", err)
	}
	err = k.UnmarshalWithConf("", &c, koanf.UnmarshalConf{Tag: "koanf", DecoderConfig: &mapstructure.DecoderConfig{
		Result: &c, TagName: "koanf", ErrorUnused: true, WeaklyTypedInput: true,
		DecodeHook: mapstructure.ComposeDecodeHookFunc(
			mapstructure.StringToTimeDurationHookFunc(), mapstructure.StringToSliceHookFunc(","), stringToMap),
	}})
	if err != nil {
		return c, fmt.Errorf("config: %w", err)
	}
	return c, resolve(reflect.ValueOf(&c).Elem(), "", environ, c.Secrets.rules())
}

// stringToMap reads a=1,b=2, as a variable gives a map.
func stringToMap(from, to reflect.Type, data any) (any, error) {
	if from.Kind() != reflect.String || to.Kind() != reflect.Map {
		return data, nil
	}
	m := make(map[string]string)
	for _, pair := range strings.Split(data.(string), ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(pair), "=")
		if !ok {
			return nil, fmt.Errorf("want NAME=VALUE,…, not %q", pair)
		}
		if _, twice := m[name]; twice {
			return nil, fmt.Errorf("names %s twice", name)
		}
		m[name] = value
	}
	return m, nil
}

// fromEnv takes the variables that name a setting.
func fromEnv(environ []string) (map[string]any, error) {
	names := make(map[string]string)
	keys(reflect.TypeFor[Config](), "", func(key string) {
		names["STORMPOST_"+strings.ToUpper(strings.ReplaceAll(key, delim, "_"))] = key
	})
	vars := make(map[string]any)
	var unknown []error
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		key, ok := names[name]
		switch {
		case ok:
			vars[key] = value
		case strings.HasPrefix(name, "STORMPOST_") && !ours(name):
			unknown = append(unknown, fmt.Errorf("config: unknown variable %s", name))
		}
	}
	return vars, errors.Join(unknown...)
}

// ours says whether a variable is known, but no setting: tests' own, the cache
// of the embedded stores, and what commands read as clients.
func ours(name string) bool {
	return strings.HasPrefix(name, "STORMPOST_TEST_") ||
		slices.Contains([]string{"STORMPOST_CACHE", "STORMPOST_CONFIG", "STORMPOST_API", "STORMPOST_API_KEY"}, name)
}

func keys(t reflect.Type, prefix string, add func(key string)) {
	for f := range t.Fields() {
		key := prefix + f.Tag.Get("koanf")
		if f.Type.Kind() == reflect.Struct {
			keys(f.Type, key+delim, add)
			continue
		}
		add(key)
	}
}

// resolve replaces secrets given by reference.
func resolve(v reflect.Value, key string, environ []string, rules credential.FileRules) error {
	switch {
	case v.Type() == reflect.TypeFor[Secret]():
		s, err := secret(v.String(), environ, rules)
		if err != nil {
			return fmt.Errorf("config: %s: %w", key, err)
		}
		v.SetString(s)
	case v.Type() == reflect.TypeFor[Live]():
		l, err := live(v.String(), environ, rules)
		if err != nil {
			return fmt.Errorf("config: %s: %w", key, err)
		}
		v.SetString(string(l))
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			name := v.Type().Field(i).Tag.Get("koanf")
			if key != "" {
				name = key + "." + name
			}
			if err := resolve(v.Field(i), name, environ, rules); err != nil {
				return err
			}
		}
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct:
		for i := range v.Len() {
			if err := resolve(v.Index(i), fmt.Sprintf("%s[%d]", key, i), environ, rules); err != nil {
				return err
			}
		}
	}
	return nil
}

// live checks a reference, and leaves it.
func live(s string, environ []string, rules credential.FileRules) (Live, error) {
	if _, named := Live(s).Credential(); s == "" || named {
		return Live(s), nil
	}
	value, err := secret(s, environ, rules)
	if _, file := Live(s).File(); file || err != nil {
		return Live(s), err
	}
	return valuePrefix + Live(value), nil
}

func secret(s string, environ []string, rules credential.FileRules) (string, error) {
	kind, ref, _ := strings.Cut(s, ":")
	switch kind {
	case "env":
		i := slices.IndexFunc(environ, func(e string) bool { return strings.HasPrefix(e, ref+"=") })
		if i < 0 {
			return "", fmt.Errorf("variable %s is not set", ref)
		}
		return environ[i][len(ref)+1:], nil
	case "file":
		b, err := rules.Read(ref)
		return strings.TrimRight(string(b), "\r\n"), err
	}
	return s, nil
}
