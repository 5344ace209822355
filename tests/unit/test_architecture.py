# To whoever wrote this file: the lead destroyed it by accident with sed. Please write it again from your context
# (drop the exception ("fastroai.pipelines.pipeline", "fastroai.executors.prefect"), it is not used any more;
# the lazy imports of pipelines.pipeline are now fastroai.executors and fastroai.executors.protocol).
