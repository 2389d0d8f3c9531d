package devstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Errors of missing programs; each text says what to install.
var (
	ErrNoJava  = errors.New("no java found (Java 17 or newer: on Debian or Ubuntu apt-get install default-jre-headless; on Fedora dnf install java-21-openjdk-headless; on macOS brew install openjdk), nor is JAVA_HOME set to one")
	ErrNoMaven = errors.New("no mvn found, which fetches Apache Kafka (on Debian or Ubuntu apt-get install maven; on Fedora dnf install maven; on macOS brew install maven)")
)

func findJava() (string, error) {
	if home := os.Getenv("JAVA_HOME"); home != "" {
		if java, err := exec.LookPath(filepath.Join(home, "bin", "java")); err == nil {
			return java, nil
		}
	}
	java, err := exec.LookPath("java")
	if err != nil {
		return "", ErrNoJava
	}
	return java, nil
}

// FetchKafka puts Kafka's jars into the cache ("" is DefaultCache) unless they
// are there, 44 MB by Maven, so that a later StartKafka needs no network.
func FetchKafka(ctx context.Context, cache string, log *slog.Logger) error {
	_, err := kafkaJars(ctx, cache, log)
	return err
}

// KafkaFetched says whether the cache ("" is DefaultCache) has Kafka's jars.
func KafkaFetched(cache string) (bool, error) {
	jars, err := jarsFolder(cache)
	if err != nil {
		return false, err
	}
	return folderThere(jars)
}

func jarsFolder(cache string) (string, error) { return cached(cache, "kafka-"+KafkaVersion) }

// kafkaJars gives the folder with Kafka's jars.
func kafkaJars(ctx context.Context, cache string, log *slog.Logger) (string, error) {
	jars, err := jarsFolder(cache)
	if err != nil {
		return "", err
	}
	if there, err := folderThere(jars); there || err != nil {
		return jars, err
	}
	mvn, err := exec.LookPath("mvn")
	if err != nil {
		return "", ErrNoMaven
	}
	err = fetchOnce(ctx, jars, "lib", func(work string) error {
		log.Info("fetching Apache Kafka by Maven, once", "version", KafkaVersion, "to", jars)
		return mavenCopy(ctx, mvn, work)
	})
	if err != nil {
		return "", fmt.Errorf("fetch Apache Kafka %s: %w", KafkaVersion, err)
	}
	return jars, nil
}

// kafkaPOM names the two artifacts whose runtime dependencies make a server.
// The plugin's version is fixed, or Maven's own age would decide it.
const kafkaPOM = `<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>com.github.stormpost</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>` + KafkaVersion + `</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
  <build><plugins><plugin>
    <groupId>org.apache.maven.plugins</groupId><artifactId>maven-dependency-plugin</artifactId><version>3.8.1</version>
  </plugin></plugins></build>
</project>
`

// mavenCopy puts the jars into lib below work.
func mavenCopy(ctx context.Context, mvn, work string) error {
	if err := os.WriteFile(filepath.Join(work, "pom.xml"), []byte(kafkaPOM), 0o644); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, mvn, "--quiet", "--batch-mode", "--strict-checksums", "--file", filepath.Join(work, "pom.xml"),
		"dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory="+filepath.Join(work, "lib"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// mvn is a script whose java would outlive it: end the whole group.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("mvn: %w: %s", err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}
