import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.core.fs.FileSystem;
import org.apache.flink.table.api.EnvironmentSettings;
import org.apache.flink.table.api.TableEnvironment;

/** Runs the statements of a file as one job of one JVM; `${NAME}` is an environment variable, `${schema}` the reader's schema. */
public final class Drain {
    public static void main(String[] arguments) throws Exception {
        Map<String, String> env = System.getenv();
        Configuration configuration = new Configuration();
        configuration.setString("parallelism.default", env.getOrDefault("PEER_PARALLELISM", "2"));
        configuration.setString("execution.checkpointing.interval", "10 s");
        configuration.setString("execution.checkpointing.dir", "file://" + env.get("PEER_STATE"));
        configuration.setString("execution.checkpointing.externalized-checkpoint-retention", "RETAIN_ON_CANCELLATION");
        configuration.setString("table.local-time-zone", "UTC");
        configuration.setString("pipeline.object-reuse", "true");
        if (env.containsKey("PEER_RESTORE")) {
            configuration.setString("execution.state-recovery.path", env.get("PEER_RESTORE"));
        }
        configuration.setString("s3.endpoint", env.get("FEED_WORKER_S3__ENDPOINT"));
        configuration.setString("s3.path.style.access", "true");
        configuration.setString("s3.access-key", env.get("AWS_ACCESS_KEY_ID"));
        configuration.setString("s3.secret-key", env.get("AWS_SECRET_ACCESS_KEY"));
        // Or it deletes the marker of each folder after every file, which costs time and, on some servers, errors.
        configuration.setString("fs.s3a.directory.marker.retention", "keep");
        FileSystem.initialize(configuration, null);
        TableEnvironment tables =
                TableEnvironment.create(EnvironmentSettings.newInstance().inStreamingMode().withConfiguration(configuration).build());
        String script = Files.readString(Path.of(arguments[0]));
        script = script.replace("${schema}", Files.readString(Path.of(arguments[1])).replace("'", "''"));
        for (Map.Entry<String, String> one : env.entrySet()) {
            script = script.replace("${" + one.getKey() + "}", one.getValue());
        }
        for (String statement : script.split(";\\s*\\n(?=CREATE|EXECUTE)")) {
            var result = tables.executeSql(statement.strip().replaceAll(";$", ""));
            if (statement.strip().startsWith("EXECUTE")) {
                result.await();
            }
        }
    }
}
